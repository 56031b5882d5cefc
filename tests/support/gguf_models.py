"""Tiny merged models for exports to GGUF, with a tokenizer of SentencePiece's kind that is made here."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from lorafit.exporters.gguf.source import GgufSource, SourceTensor
from support import tiny

WORDS = ("▁the", "▁law", "th", "he", "in", "er", "▁a")
SPECIAL = ("<unk>", "<s>", "</s>", "<|end|>")
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
END = 3
WIDE = {"hidden_size": 256, "intermediate_size": 512}
# Changes of the families' tiny shapes: llama.cpp has one scale of attention, and Gemma 3 a window in 5 of 6 layers.
CHANGES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "mistral": {"sliding_window": None},
    "qwen2": {"use_sliding_window": False},
    "qwen3": {},
    "gemma2": {},
    "gemma3": {"num_hidden_layers": 7},
    "phi3": {"original_max_position_embeddings": 256},
}


def write_tokenizer(folder: Path) -> int:
    """Write tokenizer.json and tokenizer_config.json into `folder` and return the number of tokens."""
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *dict.fromkeys("▁abcdefghijklmnopqrstuvwxyz")]
    merges = []
    for word in WORDS:
        for end in range(2, len(word) + 1):
            if word[:end] not in pieces:
                pieces.append(word[:end])
                merges.append([word[: end - 1], word[end - 1]])
    added = [{"id": place, "content": text, "special": True, "normalized": False, "single_word": False, "lstrip": False,
              "rstrip": False} for place, text in enumerate(SPECIAL)]  # fmt: skip
    model = {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "merges": merges,
             "vocab": {piece: place for place, piece in enumerate(pieces)}}  # fmt: skip
    steps = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
             {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}  # fmt: skip
    decoder = {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
               {"type": "ByteFallback"}, {"type": "Fuse"}]}  # fmt: skip
    content = {"version": "1.0", "added_tokens": added, "normalizer": steps, "decoder": decoder, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    names = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(names), "utf-8")
    return len(pieces)


def make_source(family: str, folder: Path, **changes: Any) -> GgufSource:
    """Save a random model of `family` with the tokenizer in `folder`, and return it as a merged model.

    It has a few rows of embeddings more than tokens, as real models do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = write_tokenizer(folder) + 5
    tiny.save_model(family, folder, **{"vocab_size": rows, **CHANGES[family], **changes})
    return source_of(folder)


def source_of(folder: Path) -> GgufSource:
    """Return the model in `folder`, in one file of float32 tensors, as a merged model."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    weights = load_file(folder / "model.safetensors")
    shapes = {name: values.shape for name, values in weights.items()}
    return GgufSource(
        folder.name,
        config,
        folder,
        TEMPLATE,
        [END],
        True,
        shapes,
        lambda: (SourceTensor(*pair) for pair in weights.items()),
    )


def with_changes(source: GgufSource, name: str, values: NDArray[np.float32] | None) -> GgufSource:
    """Return `source` with the tensor `name` replaced, added, or left out (None)."""
    weights = {own: found for own, found, _delta in source.tensors() if own != name}
    if values is not None:
        weights[name] = values

    def tensors() -> Iterator[SourceTensor]:
        yield from (SourceTensor(*pair) for pair in weights.items())

    return replace(source, shapes={own: found.shape for own, found in weights.items()}, tensors=tensors)
