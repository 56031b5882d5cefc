"""GGUF files of a merged model, type by type, beside transformers: size, time, error of the tensors, and answers.

    python benchmarks/gguf_types.py [--model FOLDER] [--adapter FOLDER] [--types f32,q8_0,...] [--json FILE]

The model is the demo's, or the transformers folder FOLDER. The answers are those of llama.cpp on short public texts, for
which the package xllamacpp is needed (`pip install 'lorafit[gguf]'`); without it, K-quants and answers are left out.
`--adapter` adds the file of an adapter alone, applied by llama.cpp to the file in f32.
"""

import argparse
import json
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import AutoModelForCausalLM, AutoTokenizer

from ending import report_figures
from lorafit.exporters.gguf.layout import restored
from lorafit.exporters.gguf.lora import write_lora_gguf
from lorafit.exporters.gguf.runtime import LlamaCpp
from lorafit.exporters.gguf.source import GgufReport, GgufSource, SourceTensor
from lorafit.exporters.gguf.write import plan_gguf, write_gguf
from lorafit.exporters.merge import merged_tensors
from lorafit.models.demo import demo_model
from lorafit.units import MIB

TEXTS = ("The tenant pays the rent on the first day of each month, and the landlord keeps the flat in repair.",
         "合同双方应当按照约定全面履行自己的义务，任何一方不得擅自变更或者解除合同。")  # fmt: skip
PLAIN, K_QUANTS = ("f32", "f16", "bf16", "q8_0", "q4_0"), ("q6_k", "q5_k_m", "q4_k_m")
HAS_LLAMA = find_spec("xllamacpp") is not None


def source_of(folder: Path) -> GgufSource:
    """Return the model in `folder` as an export reads it."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    tokenizer, tensors = AutoTokenizer.from_pretrained(folder), merged_tensors(folder, {})
    return GgufSource(
        name=folder.name,
        config=config,
        tokenizer=folder,
        chat_template=tokenizer.chat_template,
        end_tokens=[tokenizer.eos_token_id],
        add_bos=False,
        shapes={tensor.name: tensor.header.shape for tensor in tensors},
        tensors=lambda: (SourceTensor(tensor.name, *tensor.parts()) for tensor in merged_tensors(folder, {})),
    )


def tensor_error(report: GgufReport, source: GgufSource) -> float:
    """Return the largest relative error of a tensor, by norm, read back from the file."""
    stored = {tensor.name: tensor for tensor in GGUFReader(report.path).tensors}
    written, worst = {tensor.source: tensor for tensor in report.tensors}, 0.0
    for name, values, _delta in source.tensors():
        if tensor := written.get(name):
            one = stored[tensor.name]
            found = restored(dequantize(one.data, one.tensor_type).reshape(tensor.shape), tensor.heads, tensor.shift)
            worst = max(worst, float(np.linalg.norm(found.reshape(values.shape) - values) / np.linalg.norm(values)))
    return worst


def answers(path: Path, wanted: list[tuple[list[int], torch.Tensor]], lora: Path | None = None) -> dict[str, float]:
    """Return KL(transformers || llama.cpp) per position in nats, the largest difference, and the share of equal best tokens."""
    parts = []
    with LlamaCpp(path, 256, lora=lora) as model:
        for ids, log_probs in wanted:
            found = torch.log_softmax(torch.from_numpy(model.logits(ids)[:, : log_probs.shape[1]]), -1)
            kl = (log_probs.exp() * (log_probs - found)).sum(-1)
            parts.append((kl, (found - log_probs).abs().amax(-1), found.argmax(-1) == log_probs.argmax(-1)))
    kl, off, same = (torch.cat([part[place].float() for part in parts]) for place in range(3))
    return {"kl": float(kl.mean()), "most": float(off.max()), "top1": float(same.mean())}


def expected(folder: Path, adapter: Path | None = None) -> list[tuple[list[int], torch.Tensor]]:
    """Return token IDs and log-probabilities of transformers in float32 for each text."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model.load_adapter(str(adapter))
    tokenizer, found = AutoTokenizer.from_pretrained(folder), []
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        with torch.no_grad():
            found.append((ids, torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].float(), -1)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--adapter", type=Path, default=None)
    parser.add_argument("--types", default=",".join((*PLAIN, *(K_QUANTS if HAS_LLAMA else ()))))
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    folder = args.model or demo_model()
    source, figures = source_of(folder), {"ok": True}
    wanted = expected(folder) if HAS_LLAMA else []
    with tempfile.TemporaryDirectory() as scratch:
        for kind in args.types.split(","):
            plan_gguf(source, kind)
            began, path = time.monotonic(), Path(scratch) / f"{kind}.gguf"
            report = write_gguf(source, path, kind, lambda _text: None)
            row = {
                "seconds": time.monotonic() - began,
                "MiB": report.bytes / MIB,
                "tensor": tensor_error(report, source),
            }
            row |= answers(path, wanted) if HAS_LLAMA else {}
            print(kind, " ".join(f"{name} {value:.3g}" for name, value in row.items()), flush=True)
            figures |= {f"{kind}_{name}": value for name, value in row.items()}
        if args.adapter is not None and HAS_LLAMA:
            lora = write_lora_gguf(args.adapter, source.config, source.name, Path(scratch) / "adapter.gguf")
            row = answers(Path(scratch) / "f32.gguf", expected(folder, args.adapter), lora.path)
            print("f32 and adapter", " ".join(f"{name} {value:.3g}" for name, value in row.items()))
            figures |= {f"adapter_{name}": value for name, value in row.items()}
    sys.exit(report_figures(figures, args.json))


if __name__ == "__main__":
    main()
