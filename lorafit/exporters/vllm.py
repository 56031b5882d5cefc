"""The target `vllm`: an adapter as `vllm serve --lora-modules NAME=DIR` reads it, with the command that starts the server.

vLLM reads PEFT's layout with one rank and one scale for all layers, and ignores patterns of these in silence. So all ranks
are padded with zeros to the highest, and each layer's scale is multiplied into its B. vLLM also ignores a layer whose name
its own model does not have. So only types are exported whose layers have one name in transformers and in vLLM.
The facts are from vLLM's lora_model.py, peft_helper.py, model_manager.py, config/lora.py and its list of models (2026).
"""

import json
import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from lorafit.engines.tokenizer import GENERATION_CONFIG, ChatTokenizer, load_tokenizer
from lorafit.errors import ExportError
from lorafit.exporters.base import ExportRequest, ExportSource
from lorafit.exporters.certificate import Certificate
from lorafit.exporters.chat_files import folder_title, require_chat, write_tokenizer
from lorafit.exporters.facts import adapter_facts, base_facts
from lorafit.exporters.low_rank import difference, side_by_side
from lorafit.exporters.merge import Delta
from lorafit.exporters.peft import peft_answer
from lorafit.exporters.rounding import Float32
from lorafit.exporters.texts import template_ids
from lorafit.messages import _, listed
from lorafit.models.lora_targets import place_in_layers
from lorafit.progress import ProgressCallback
from lorafit.run_folders.adapter import lora_names, read_adapter, write_adapter, write_chat_settings
from lorafit.units import MIB

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # of --max-lora-rank
TEMPLATE = "chat_template.jinja"
OTHER_FILES_BYTES = 64 * MIB  # tokenizer, settings and certificate
# Types whose layers vLLM calls as transformers does, apart from layers that it joins and splits an adapter for.
DENSE = frozenset(
    [
        "apertus", "arcee", "cohere", "cohere2", "ernie4_5", "exaone4", "gemma", "gemma2", "gemma3", "gemma3_text", "glm",
        "glm4", "granite", "hunyuan_v1_dense", "llama", "mistral", "mistral3", "nemotron", "olmo2", "olmo3", "phi", "phi3",
        "qwen2", "qwen2_5_vl", "qwen2_5_vl_text", "qwen2_vl", "qwen2_vl_text", "qwen3", "qwen3_vl", "qwen3_vl_text",
        "seed_oss", "smollm3", "starcoder2",
    ]
)  # fmt: skip
# Types of which this is true of attention only: vLLM has other names for experts and for what lies beside them.
ATTENTION = frozenset(["glm4_moe", "granitemoe", "mixtral", "phimoe", "qwen2_moe", "qwen3_moe"])
DENSE_LAYER = re.compile(
    r"\d+\.(self_attn\.(q_proj|k_proj|v_proj|o_proj|qkv_proj|dense)"
    r"|mlp\.(gate_proj|up_proj|down_proj|gate_up_proj|fc1|fc2|c_fc|c_proj))"
)
ATTENTION_LAYER = re.compile(r"\d+\.self_attn\.(q_proj|k_proj|v_proj|o_proj)")
SHOWN = 3


@dataclass
class VllmExport:
    """A checked export of an adapter with the highest `rank`."""

    source: ExportSource
    rank: int

    @property
    def needed_bytes(self) -> int:
        """The bytes of the padded adapter, and of the other files."""
        linears = {place_in_layers(one.name): one.in_features + one.out_features for one in self.source.spec.linears}
        widths = (linears.get(place_in_layers(module), 2 * self.source.spec.hidden) for module in self.source.modules)
        return 4 * self.rank * sum(widths) + OTHER_FILES_BYTES

    def write(self, folder: Path, say: ProgressCallback) -> Certificate:
        """Write adapter, tokenizer and README.md. Raises ExportError if the adapter does not compute what it should."""
        source = self.source
        say(_("Writing the adapter"))
        far = self._write_weights(folder)
        write_tokenizer(source, folder)
        write_chat_settings(folder, replace(source.chat, untrained_end=""))  # the template written has none
        template, stops = require_chat(source, folder)
        say(_("Checking that `peft` loads the adapter"))
        answer = peft_answer(source, folder)
        command = self._command()
        text = _(
            "One rank ({rank}) and one scale for all layers, as vLLM needs: the same deltas up to {far:.0e}, relative."
        )
        notes = [answer, text.format(rank=self.rank, far=far), *self._notes()]
        return Certificate("vllm", base_facts(source), adapter_facts(source), quantization=source.quantization,
                           template=template, stop_ids=stops, notes=notes, commands=[command])  # fmt: skip

    def _command(self) -> str:
        """Return the command that serves the adapter in `{folder}`."""
        words = ["vllm", "serve", self._base, "--enable-lora", "--max-lora-rank", str(_allowed(self.rank))]
        words += ["--lora-modules", f"{self._name}={{folder}}"]
        if self.source.quantization == "4bit":
            words += ["--quantization", "bitsandbytes"]
        known = load_tokenizer(self.source.base.folder, trust_remote_code=self.source.trust_remote_code)
        if not self._has_our_template(known):
            words += ["--chat-template", f"{{folder}}/{TEMPLATE}"]
        if not self.source.tokenizer.stop_ids <= _stops_of_vllm(self.source.base.folder, known):
            words += ["--generation-config", "{folder}"]
        if self.source.trust_remote_code:
            words += ["--trust-remote-code"]
        return " ".join(word if "{folder}" in word else shlex.quote(word) for word in words)

    @property
    def _base(self) -> str:
        """The base model's ID, else the name of its folder."""
        return Path(self.source.base.name).name if self._is_folder else self.source.base.name

    @property
    def _is_folder(self) -> bool:
        return Path(self.source.base.name).is_absolute()

    @property
    def _name(self) -> str:
        """The name of the model in requests."""
        return re.sub(r"[^\w.-]+", "-", folder_title(self.source)).strip("-.") or "adapter"

    def _has_our_template(self, known: ChatTokenizer) -> bool:
        date, own = self.source.chat.date_string, self.source.tokenizer
        return not known.uses_default_template and template_ids(known, date) == template_ids(own, date)

    def _write_weights(self, folder: Path) -> float:
        """Write the padded adapter and return the largest relative difference of a delta."""
        config, tensors = read_adapter(self.source.adapter)
        deltas = {}
        padded: dict[str, Float32] = {}
        for module in self.source.modules:
            a, b = (tensors[name] for name in lora_names(module))
            deltas[module] = Delta(a, b, config.scale_of(module))
            padded |= dict(zip(lora_names(module), side_by_side([deltas[module]], self.rank), strict=True))
        uniform = replace(config, r=self.rank, alpha=float(self.rank), dropout=0.0, use_rslora=False, rank_pattern={},
                          alpha_pattern={})  # fmt: skip
        write_adapter(folder, uniform, padded)
        written, found = read_adapter(folder)
        largest = 0.0
        for module, delta in deltas.items():
            a, b = (found[name] for name in lora_names(module))
            largest = max(largest, difference(module, [delta], Delta(a, b, written.scale_of(module))))
        return largest

    def _notes(self) -> list[str]:
        notes = [
            _("Not measured how vLLM answers: lorafit does not run it. vLLM computes in the type of the base model.")
        ]
        if self.source.quantization == "4bit":
            notes.append(
                _("The base model had 4 bits (NF4) in the training. `--quantization bitsandbytes` gives it 4 bits too.")
            )
        if self.source.quantization == "8bit":
            notes.append(_("The base model had 8 bits in the training, and has more in vLLM: answers differ a little."))
        if self._is_folder:
            notes.append(_("In the command, `{base}` is the folder of the base model.").format(base=self._base))
        return notes


def check(source: ExportSource, request: ExportRequest) -> VllmExport:
    """Return the export. Raises ExportError for what vLLM does not read."""
    if source.spec.packed is not None:
        raise _refused(_("a base model in {bits} bits, by MLX").format(bits=source.spec.packed.bits))
    kinds = {source.spec.model_type, source.spec.text_type or source.spec.model_type}
    if strange := kinds - DENSE - ATTENTION:
        text = _("a base model of the type {kind}, in which lorafit does not know vLLM's names of layers")
        raise _refused(text.format(kind=listed(sorted(strange))))
    known = DENSE_LAYER if kinds <= DENSE else ATTENTION_LAYER
    others = [module for module in source.modules if not known.fullmatch(place_in_layers(module))]
    if others:
        names = listed([*others[:SHOWN], *(["..."] if others[SHOWN:] else [])])
        raise _refused(_("LoRA on these layers: {names}").format(names=names))
    rank = max(source.config.rank_of(module) for module in source.modules)
    if rank > RANKS[-1]:
        raise _refused(_("rank {rank}; at most {most}").format(rank=rank, most=RANKS[-1]))
    return VllmExport(source, rank)


def _refused(found: str) -> ExportError:
    fix = _("Merge the adapter into the base model, which vLLM serves as any model: `--to merged`.")
    return ExportError(_("vLLM does not take this adapter."), found=found, fix=fix)


def _allowed(rank: int) -> int:
    """Return the smallest --max-lora-rank for an adapter of the rank `rank`."""
    return next(one for one in RANKS if one >= rank)


def _stops_of_vllm(base: Path, known: ChatTokenizer) -> set[int]:
    """Return the tokens at which vLLM ends an answer of the model in the folder `base`."""
    path = base / GENERATION_CONFIG
    eos = json.loads(path.read_text("utf-8")).get("eos_token_id") if path.is_file() else None
    return {known.inner.eos_token_id, *(eos if isinstance(eos, list) else [eos])}
