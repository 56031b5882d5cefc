"""Faults in what is written beside the weights: tokens, templates, ends of answers, settings, and the files themselves."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from exports.faults import F16, OTHER_TEMPLATE, Q4, Q8, Change, arguments, of_all, result
from exports.trials import Plant, Trial
from lorafit.exporters import adapted, chat_files, merge, merged, peft, weight_writer
from lorafit.exporters.gguf import export as gguf_export
from lorafit.exporters.gguf import tokenizer as gguf_tokenizer
from lorafit.exporters.gguf import write
from lorafit.exporters.ollama import export as ollama_export
from lorafit.exporters.ollama import modelfile

END, EOS = 3, 2  # the trained end token, and the base's own


def special(**changes: int | None) -> Plant:
    """Return a fault: other special tokens in a GGUF file; None leaves one out."""

    def change(found: dict[str, int]) -> dict[str, int]:
        return {name: token for name, token in (found | changes).items() if token is not None}  # type: ignore[operator]

    return Plant(gguf_tokenizer, "_special", result(change))


def model(**changes: Any) -> Plant:
    """Return a fault in what the writer of GGUF files is told of the model."""
    return Plant(gguf_export, "gguf_source", result(lambda found: replace(found, **changes)))


def tokens(**changes: Callable[[Any], Any]) -> Plant:
    """Return a fault in the tokenizer of a GGUF file."""
    return Plant(
        write,
        "read_tokenizer",
        result(lambda found: replace(found, **{n: c(getattr(found, n)) for n, c in changes.items()})),
    )


def rolled(values: Any) -> Any:
    """Return the list or array shifted by one."""
    return np.roll(values, 1, 0) if isinstance(values, np.ndarray) else [values[-1], *values[:-1]]


def file_change(name: str, change: Callable[[str], str]) -> Change:
    """Return what makes of a function with the arguments (source, folder) one that then changes a file in the folder."""

    def make(original: Any) -> Any:
        def faulty(source: Any, folder: Path, *given: Any) -> Any:
            found = original(source, folder, *given)
            path = folder / name
            path.write_text(change(path.read_text("utf-8")), "utf-8")
            return found

        return faulty

    return make


def written(name: str, change: Callable[[Any], Any], owner: Any = merged, function: str = "write_chat_files") -> Plant:
    """Return a fault: a JSON file of the export gets other content."""
    return Plant(
        owner, function, file_change(name, lambda text: json.dumps(change(json.loads(text)), ensure_ascii=False))
    )


def shifted(content: dict[str, Any]) -> dict[str, Any]:
    """Return tokenizer.json with the IDs of ordinary tokens shifted by one."""
    own = {token["id"] for token in content["added_tokens"]}
    vocabulary = content["model"]["vocab"]
    ordinary = sorted((i, text) for text, i in vocabulary.items() if i not in own)
    for (i, _text), (_other, text) in zip(ordinary, rolled(ordinary), strict=True):
        vocabulary[text] = i
    return content


def as_half(words: Any) -> Any:
    """Return words of another type with the same number of bytes."""
    return words if words.dtype != np.uint16 else (words.astype(np.uint32) << 16).view(np.float32).astype(np.float16)


CHAT: list[Trial] = [
    *of_all("the base's end token instead of the trained one", ("llama", "gguf", F16), plant=special(eos=EOS, eot=END)),
    *of_all("a wrong end token", ("llama", "gguf", Q8), ("qwen2", "gguf", F16), plant=special(eos=42)),
    *of_all("the end token is missing", ("llama", "gguf", F16), plant=special(eos=None, eot=None)),
    *of_all("the template is missing", ("llama", "gguf", F16), ("llama", "lmstudio", Q8),
            plant=Plant(gguf_tokenizer.GGUFWriter, "add_chat_template", lambda _own: lambda *_given: None)),
    *of_all("the template of another model", ("llama", "gguf", F16), plant=model(chat_template=OTHER_TEMPLATE)),
    *of_all("marks of the training are left in the template", ("llama, marks", "merged", {}), ("llama, marks", "gguf", F16),
            plant=Plant(chat_files, "without_marks", lambda _own: lambda text: text)),
    *of_all("bos is added twice", ("llama, no bos", "gguf", F16), plant=model(add_bos=True)),
    *of_all("bos is lost", ("llama", "gguf", F16), plant=model(add_bos=False)),
    *of_all("tokens are shifted by one", ("llama", "gguf", F16), ("qwen2", "gguf", Q8), plant=tokens(tokens=rolled)),
    *of_all("merges are lost", ("qwen2", "gguf", F16), plant=tokens(merges=lambda merges: merges[:40])),
    *of_all("another expression splits texts", ("qwen2", "gguf", F16), ("qwen3", "gguf", Q8), plant=tokens(pre=lambda _pre: "gpt-2")),
    *of_all("no space before a text", ("llama", "gguf", F16), plant=tokens(space_prefix=lambda _prefix: False)),
    *of_all("types of tokens are lost", ("llama", "gguf", F16), plant=tokens(types=lambda types: [1] * len(types))),
    *of_all("the base's end token instead of the trained one", ("llama", "merged", {}),
            plant=written("generation_config.json", lambda facts: facts | {"eos_token_id": EOS})),
    *of_all("the template is missing", ("llama", "merged", {}), plant=Plant(merged, "write_chat_files", file_change("chat_template.jinja", lambda _text: ""))),
    *of_all("the template of another model", ("qwen2", "merged", {}),
            plant=Plant(merged, "write_chat_files", file_change("chat_template.jinja", lambda _text: OTHER_TEMPLATE))),
    *of_all("tokens are shifted by one", ("llama", "merged", {}), plant=written("tokenizer.json", shifted)),
    *of_all("rope_theta is lost", ("llama", "merged", {}),
            plant=written("config.json", lambda facts: {n: v for n, v in facts.items() if "rope" not in n}, function="write_config")),
    *of_all("layers are lost in config.json", ("qwen3", "merged", {}),
            plant=written("config.json", lambda facts: facts | {"num_hidden_layers": 3}, function="write_config")),
]  # fmt: skip


def shorter(original: Any) -> Any:
    """Return a faulty end of a safetensors file: its last bytes are lost."""

    def faulty(self: Any, *error: Any) -> None:
        self._file.truncate(self.path.stat().st_size - 1000)
        original(self, *error)

    return faulty


def cut(path: Path) -> None:
    """Cut a file."""
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 5000)


def cut_after(original: Any) -> Any:
    """Return a faulty write_gguf(): the end of the file is lost."""

    def faulty(source: Any, target: Path, *given: Any) -> Any:
        found = original(source, target, *given)
        cut(target)
        return found

    return faulty


def other_shift(original: Any) -> Any:
    """Return a faulty blocks(): the rows of the embedding are shifted by one."""

    def faulty(self: Any) -> Any:
        for block in original(self):
            yield block._replace(weight=rolled(block.weight)) if "q_proj" in self.name else block

    return faulty


def flip(name: str) -> Callable[[Path], None]:
    """Return a damage: one bit of the first file that fits `name` is changed."""

    def damage(folder: Path) -> None:
        path = next(folder.glob(name))
        content = bytearray(path.read_bytes())
        content[-9] ^= 4
        path.write_bytes(content)

    return damage


def clipped(values: Any) -> Any:
    """Return a faulty isfinite(): always true."""
    return np.ones_like(values, bool)


FILES: list[Trial] = [
    *of_all("the file of the weights is cut", ("llama", "merged", {}), plant=Plant(weight_writer.WeightWriter, "__exit__", shorter)),
    *of_all("the file of the weights is cut", ("llama", "gguf", Q8), plant=Plant(gguf_export, "write_gguf", cut_after)),
    *of_all("words of another type", ("llama, bf16", "merged", {}), plant=Plant(merged, "rounded", result(as_half))),
    *of_all("rows of the query are shifted", ("llama", "merged", {}), plant=Plant(merge.MergedTensor, "blocks", other_shift)),
    Trial("a change too small for bf16", "llama, faint", "merged", {"dtype": "bf16"}, refused_wish=True),
    Trial("q4_0 on the grid of the base", "llama, Q4_0 grid", "gguf", {"quantize": "q4_0"}, refused_wish=True),
    Trial("a weight beyond fp16", "llama, large weight", "merged", {"dtype": "fp16"}, refused_wish=True),
    Trial("a weight beyond f16", "llama, large weight", "gguf", F16, refused_wish=True),
    Trial("a bit is changed later (merged)", "llama", "merged", damage=flip("model.safetensors")),
    Trial("a bit is changed later (gguf)", "llama", "gguf", Q8, damage=flip("*.gguf")),
    Trial("the template is changed later", "llama", "merged", damage=flip("chat_template.jinja")),
    Trial("a file is lost later", "llama", "merged", damage=lambda folder: (folder / "generation_config.json").unlink()),
]  # fmt: skip


def nf4(values: Any) -> Any:
    """Return the values rounded to bitsandbytes' 4-bit floats, in blocks of 64."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    return dequantize_4bit(*quantize_4bit(torch.from_numpy(np.ascontiguousarray(values)), quant_type="nf4")).numpy()


def to_nf4(original: Any) -> Any:
    """Return a faulty merge: the sum is rounded to the 4-bit floats of the base."""
    return lambda self: original(self) if self.delta is None else nf4(original(self))


def parts_to_nf4(found: tuple[Any, Any]) -> tuple[Any, Any]:
    """Return a tensor and its delta such that their sum is rounded to the 4-bit floats of the base."""
    weight, delta = found
    return found if delta is None else (weight, nf4(weight + delta) - weight)


FOUR_BITS: list[Trial] = [
    *of_all("the sum is rounded to the base's NF4", ("run, 4 bits", "merged", {}), plant=Plant(merge.Block, "merged", to_nf4)),
    *of_all("the sum is rounded to the base's NF4", ("run, 4 bits", "gguf", F16), plant=Plant(merge.MergedTensor, "parts", result(parts_to_nf4))),
    *of_all("merged into the base before it was quantized", ("run, 4 bits", "merged", {}), ("run, 4 bits, bf16", "merged", {}), ("run, 4 bits", "gguf", Q8),
            ("run, 4 bits", "gguf", Q4), plant=Plant(adapted, "_dequantized", lambda _own: lambda *_given: {})),
]  # fmt: skip


def in_template(old: str, new: str) -> Plant:
    """Return a fault in the Go template."""
    return Plant(modelfile, "go_template", result(lambda text: text.replace(old, new)))


def in_modelfile(pattern: str, new: str) -> Plant:
    """Return a fault in the Modelfile."""
    return Plant(
        ollama_export, "modelfile", result(lambda found: found._replace(text=re.sub(pattern, new, found.text)))
    )


OLLAMA: list[Trial] = [
    *of_all("roles are swapped in the Go template", ("llama", "ollama", Q8), plant=in_template("<|user|>", "<|assistant|>")),
    *of_all("the Go template has no prompt for the answer", ("llama", "ollama", Q8), plant=in_template('{{ if ne $last "assistant" }}', "{{ if false }}")),
    *of_all("bos is in the Go template too", ("llama", "ollama", Q8), plant=Plant(modelfile, "go_template", arguments(lambda found, *_given: (found,)))),
    *of_all("a stop is missing", ("llama", "ollama", Q8), plant=in_modelfile(r'PARAMETER stop "<\|end\|>"\n', "")),
    *of_all("the stop is wrong", ("qwen2", "ollama", Q8), plant=in_modelfile(r'stop "<\|end\|>"', 'stop "<|im_end|>"')),
    *of_all("the file is not named", ("llama", "ollama", Q8), plant=in_modelfile(r"FROM .*\n", "FROM ./model.gguf\n")),
]  # fmt: skip
PEFT: list[Trial] = [
    *of_all("alpha is lost", ("llama", "peft", {}), plant=Plant(peft, "ask_peft", lambda own: lambda folder, *given: (
        (folder / "adapter_config.json").write_text(
            json.dumps(json.loads((folder / "adapter_config.json").read_text("utf-8")) | {"lora_alpha": 8}), "utf-8"
        ), own(folder, *given))[1])),
    *of_all("the template is missing", ("llama", "peft", {}), plant=Plant(peft, "peft_answer", lambda own: lambda source, folder: (
        (folder / "chat_template.jinja").write_text("", "utf-8"), own(source, folder))[1])),
]  # fmt: skip
