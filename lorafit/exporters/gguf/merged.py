"""The merged model as the writer of GGUF files reads it, and how such files are measured."""

import os
import re
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from lorafit.engines.tokenizer import ChatTokenizer
from lorafit.exporters.adapted import adapted_tensors, too_large_to_measure
from lorafit.exporters.base import ExportSource
from lorafit.exporters.chat_files import folder_title
from lorafit.exporters.gguf.chat_check import begins_with_bos
from lorafit.exporters.gguf.quantize import PACKAGE
from lorafit.exporters.gguf.runtime import LlamaCpp
from lorafit.exporters.gguf.source import GgufSource, SourceTensor
from lorafit.exporters.merge import MergedTensor, merged_tensors
from lorafit.exporters.products import Product, product
from lorafit.messages import _
from lorafit.models.spec import read_config
from lorafit.progress import ProgressCallback
from lorafit.units import MIB

OTHER_BYTES = 32 * MIB  # tokenizer and settings in a file, and the files beside it
# Of KL(live || export) to KL(live || base), by type.
MOST_RATIO = {"f32": 0.05, "f16": 0.05, "bf16": 0.05, "q8_0": 0.10, "q6_k": 0.10}
OF_FEW_BITS = 0.25  # of the other types
TIE, WIDE_TIE = {"f32": 2e-3}, 0.05  # nats that make a close call of a greedy answer


def why_not_measured(source: ExportSource) -> str | None:
    """Return why answers of GGUF files cannot be measured here; None: they can."""
    if find_spec(PACKAGE) is None:
        text = _("Not measured how the export answers: llama.cpp is not installed. Install it: {command}")
        return text.format(command='pip install "lorafit[gguf]"')
    return too_large_to_measure(source, "fp32")


def open_form(_source: ExportSource, file: Path, length: int) -> LlamaCpp:
    """Return `file` loaded by llama.cpp, with a context of `length` tokens."""
    return LlamaCpp(file, length, os.cpu_count() or 1)


def runtime_name() -> str:
    """Return the program that measures GGUF files, with the version of its package."""
    return f"llama.cpp ({PACKAGE} {metadata.version(PACKAGE)})"


def file_stem(source: ExportSource) -> str:
    """Return the name of an export's files without type and ending: that of the run, without signs and spaces."""
    return re.sub(r"[^\w.]+", "-", folder_title(source)).strip("-.") or "model"


def gguf_source(
    source: ExportSource, names: dict[str, str], tokenizer: ChatTokenizer, say: ProgressCallback
) -> GgufSource:
    """Return the merged model as the writer of GGUF files reads it. `tokenizer` is the exported one in its folder."""
    headers = merged_tensors(source.base.folder, {})

    @cache
    def adapted() -> list[MergedTensor]:
        return adapted_tensors(source, names, say)

    layers: dict[str, Product] = {}

    def tensors() -> Iterator[SourceTensor]:
        for tensor in adapted():
            found = SourceTensor(tensor.name, *tensor.parts())
            if found.delta is not None:
                layers[found.name] = product(found.weight, found.delta)
            yield found
            del found  # the next tensor is made without it in memory

    return GgufSource(
        name=Path(source.base.name).name,
        config=read_config(source.base.folder),
        tokenizer=tokenizer.folder,
        chat_template=tokenizer.inner.chat_template,
        end_tokens=source.tokenizer.end_ids,
        add_bos=begins_with_bos(source.tokenizer, source.chat.date_string),
        shapes={tensor.name: tensor.header.shape for tensor in headers},
        tensors=tensors,
        layers=layers,
    )
