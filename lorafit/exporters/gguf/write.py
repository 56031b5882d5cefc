"""Write a merged model as a GGUF file, tensor by tensor: at most one tensor in float32 and its blocks are in memory."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFType, GGUFWriter, size_label
from gguf.quants import dequantize
from numpy.typing import NDArray

from lorafit.atomic import atomic_file
from lorafit.errors import ModelError
from lorafit.exporters.certificate import Survival
from lorafit.exporters.gguf.architectures import Architecture, find_architecture, head_dim_of, notes_of, settings_of
from lorafit.exporters.gguf.layout import check_shapes, plan_tensors, transformed
from lorafit.exporters.gguf.quantize import FILE_TYPES, bytes_of, check_quantize, rounded
from lorafit.exporters.gguf.rope import add_rope, rope_factors
from lorafit.exporters.gguf.source import Floats, GgufReport, GgufSource, GgufTensor
from lorafit.exporters.gguf.tokenizer import GgufTokenizer, add_tokenizer, read_tokenizer, told_name
from lorafit.messages import _
from lorafit.progress import ProgressCallback, ignore_progress
from lorafit.units import bytes_text

BLOCK_VALUES = 1 << 21  # rounded at a time by one thread
MEASURED_BLOCKS = 4  # of a tensor, evenly spread, on which the rest of the delta is measured


@dataclass(frozen=True)
class GgufPlan:
    """All that is known about a file before a weight is read. `bytes` is the size of its tensors."""

    architecture: Architecture
    settings: dict[str, Any]
    tokenizer: GgufTokenizer
    tensors: list[GgufTensor]
    bytes: int


def plan_gguf(source: GgufSource, quantize: str) -> GgufPlan:
    """Return the plan of a GGUF file of the type `quantize`. Read no weight.

    Raise ModelError for a model or tokenizer that llama.cpp cannot compute, ConfigError for a type that cannot be written.
    """
    check_quantize(quantize)
    settings = settings_of(source.config)
    architecture = find_architecture(settings, source.name)
    tensors = plan_tensors(source, architecture, settings, quantize)
    check_shapes(tensors, settings, source.name)
    rows = next(tensor.shape[0] for tensor in tensors if tensor.name == "token_embd.weight")
    size = sum(bytes_of(tensor.shape, GGMLQuantizationType[tensor.type]) for tensor in tensors)
    return GgufPlan(architecture, settings, read_tokenizer(source, rows), tensors, size)


def write_gguf(
    source: GgufSource, target: Path, quantize: str, progress: ProgressCallback = ignore_progress
) -> GgufReport:
    """Write the merged model `source` to the file `target`, whole or not at all, with weights of the type `quantize`.

    Raise ModelError and ConfigError as plan_gguf() does, ModelError for a weight that is no number, and DiskError.
    """
    plan = plan_gguf(source, quantize)
    with atomic_file(target, "--output") as path:
        writer = _writer(path, source, plan, quantize)
        try:
            survival = _write_tensors(writer, source, plan, progress)
        finally:
            writer.close()
    notes, size = tuple(notes_of(plan.settings)), target.stat().st_size
    return GgufReport(target, plan.architecture.name, quantize, size, tuple(plan.tensors), notes, survival)


def _writer(path: Path, source: GgufSource, plan: GgufPlan, quantize: str) -> GGUFWriter:
    """Return a writer that has written everything before the tensors."""
    writer = GGUFWriter(path, plan.architecture.name)
    writer.add_type(GGUFType.MODEL)
    writer.add_name(told_name(source.name, plan.tokenizer.strips))
    values = sum(int(np.prod(tensor.shape)) for tensor in plan.tensors)
    writer.add_size_label(size_label(values, values, 0, 0))
    _add_settings(writer, plan)
    writer.add_file_type(FILE_TYPES[quantize])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    add_tokenizer(writer, plan.tokenizer, source)
    for name, factors in rope_factors(plan.settings, head_dim_of(plan.settings)).items():
        writer.add_tensor_info(name, factors.shape, factors.dtype, factors.nbytes)
    for tensor in plan.tensors:
        kind = GGMLQuantizationType[tensor.type]
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), bytes_of(tensor.shape, kind), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return writer


def _add_settings(writer: GGUFWriter, plan: GgufPlan) -> None:
    settings, head_dim = plan.settings, head_dim_of(plan.settings)
    heads = settings["num_attention_heads"]
    writer.add_vocab_size(len(plan.tokenizer.tokens))
    writer.add_context_length(settings["max_position_embeddings"])
    writer.add_embedding_length(settings["hidden_size"])
    writer.add_block_count(settings["num_hidden_layers"])
    writer.add_feed_forward_length(settings["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(settings["num_key_value_heads"] or heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(settings["rms_norm_eps"])
    add_rope(writer, settings, head_dim)
    if plan.architecture.window_every:
        writer.add_sliding_window(settings["sliding_window"])
        for key, add in (
            ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
            ("final_logit_softcapping", writer.add_final_logit_softcapping),
        ):
            if settings.get(key):
                add(settings[key])
    elif plan.architecture.name == "phi3":  # llama.cpp tells Phi-3 from Phi-4 by it
        writer.add_sliding_window(settings.get("sliding_window") or 0)


def _write_tensors(writer: GGUFWriter, source: GgufSource, plan: GgufPlan, progress: ProgressCallback) -> Survival:
    assert writer.fout is not None
    file, wanted = writer.fout[0], {tensor.source: tensor for tensor in plan.tensors}
    writer.write_padding(file, file.tell())
    for factors in rope_factors(plan.settings, head_dim_of(plan.settings)).values():
        file.write(factors.tobytes())
        writer.write_padding(file, factors.nbytes)
    order, written, told, survival = iter(plan.tensors), 0, 0, Survival({}, {})
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, weight, delta in source.tensors():
            if name not in wanted:
                continue
            tensor = wanted.pop(name)
            if tensor != next(order) or weight.shape != tensor.shape:
                raise RuntimeError(f"{name} {weight.shape} is not the next tensor of the plan")
            size = _write_tensor(file, weight, delta, tensor, pool, survival)
            del weight, delta  # the source makes the next ones
            writer.write_padding(file, size)
            written += size
            if (tenth := 10 * written // plan.bytes) > told:
                told = tenth
                progress(_("{done} of {total} written").format(done=bytes_text(written), total=bytes_text(plan.bytes)))
    if wanted:
        raise ModelError(_("A tensor is missing in the merged model."), where=source.name, found=next(iter(wanted)))
    return survival


def _write_tensor(
    file: IO[bytes],
    weight: Floats,
    delta: Floats | None,
    tensor: GgufTensor,
    pool: ThreadPoolExecutor,
    survival: Survival,
) -> int:
    """Write the merged tensor in blocks of rows, add what is left of its delta to `survival`, and return its bytes."""
    kind = GGMLQuantizationType[tensor.type]
    weight = transformed(weight, tensor.heads, tensor.shift)
    if delta is not None:
        delta = transformed(delta, tensor.heads, 0.0)
    blocks = list(_blocks(weight, delta))
    every = -(-len(blocks) // MEASURED_BLOCKS)
    size, sums = 0, np.zeros(3)
    for block, found in pool.map(lambda at: _rounded_block(*blocks[at], kind, at % every == 0), range(len(blocks))):
        file.write(block.tobytes())
        size, sums = size + block.nbytes, sums + found
    survival.add(tensor.source, *(float(one) for one in sums))
    return size


def _rounded_block(
    weight: Floats, delta: Floats | None, kind: GGMLQuantizationType, measure: bool
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return the block q(W + d) in the file's type, and <q(W+d)-q(W), d>, <d, d> and <W, W>, or zeros."""
    block = rounded(weight if delta is None else weight + delta, kind)
    if delta is None or not measure or not delta.any():
        return block, np.zeros(3)
    kept = dequantize(block, kind) - dequantize(rounded(weight, kind), kind)
    return block, np.array([np.vdot(kept, delta), np.vdot(delta, delta), np.vdot(weight, weight)], np.float64)


def _blocks(weight: Floats, delta: Floats | None) -> Iterator[tuple[Floats, Floats | None]]:
    """Yield rows of both [rows, width], about BLOCK_VALUES numbers at a time."""
    rows = weight.reshape(-1, weight.shape[-1])
    changes = None if delta is None else delta.reshape(rows.shape)
    step = max(1, BLOCK_VALUES // rows.shape[1])
    for start in range(0, len(rows), step):
        yield rows[start : start + step], None if changes is None else changes[start : start + step]
