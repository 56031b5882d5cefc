"""The protocol of export targets: a check that reads no weight, then the deed; and what both are given."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import tyro
from pydantic import BaseModel, ConfigDict, Field, field_validator

from lorafit.config import Folder
from lorafit.engines.tokenizer import ChatTokenizer, Thinking
from lorafit.evaluation.validation import TrainedRun
from lorafit.exporters.certificate import Certificate
from lorafit.models.hub import FoundModel
from lorafit.models.identity import FileIdentity
from lorafit.models.spec import ModelSpec
from lorafit.progress import ProgressCallback
from lorafit.run_folders.adapter import AdapterConfig, ChatSettings

FLAG = "--output"


class ExportRequest(BaseModel):
    """Write an adapter, or the base model with the adapter merged into it, for other programs."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    run: tyro.conf.Positional[list[str]] = Field(
        [], description="Name or folder of a run, `latest`, or an adapter's folder."
    )
    mix: str | None = Field(
        None,
        description="Several adapters of one base model in place of RUN, each with the weight of its delta, e.g. "
        "`law=0.7,chat=0.3`. A negative weight subtracts.",
    )
    to: Literal["merged", "gguf", "ollama", "lmstudio", "mlx", "vllm", "peft"] | None = Field(
        None,
        description="What to write: `merged`, a whole model with the adapter in its weights; `gguf`, such a model as one "
        "file for llama.cpp; `ollama`, that file with a Modelfile; `lmstudio`, that file in LM Studio's folder; `mlx`, a "
        "whole model for MLX; `vllm`, the adapter for vLLM; `peft`, the adapter itself.",
    )
    output: str | None = Field(
        None,
        description="Folder to write, also -o. It must not exist or must be empty (`lmstudio`: default is LM Studio's own).",
    )
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto", description="Type of the weights with `--to merged` (auto: each weight as in the base model's files)."
    )
    quantize: str | None = Field(
        None,
        description="Types of the weights in GGUF files, with commas between them, one file for each: f32, f16, bf16, q8_0, "
        "q6_k, q5_k_m, q4_k_m or q4_0 (default: q8_0). q6_k, q5_k_m and q4_k_m need `lorafit[gguf]`.",
    )
    bits: Literal[4, 8, 16] | None = Field(None, description="Bits of the weights with `--to mlx` (default: 16).")
    keep: float | None = Field(
        None,
        description="Write the smallest type that keeps this share of what was learned, e.g. 0.95, even at the lower end of "
        "its interval (instead of `--quantize` or `--bits`).",
        ge=0.5,
        lt=1,
    )
    adapter_only: bool = Field(
        False, description="Write the adapter alone with `--to gguf` or `--to mlx`, to be used with the base model."
    )
    base_model: str | None = Field(
        None, description="Base model: a folder, a model ID, or `demo` (default: the adapter's base model)."
    )
    thinking: Thinking = Field(
        "as_trained",
        description="Prompts of a reasoning model by default: as in the training, or `on` or `off` by the template's switch.",
    )
    trust_remote_code: bool = Field(
        False, description="Run code that comes with the model. Only for models whose author you trust."
    )
    hub: Literal["huggingface", "modelscope"] = Field("huggingface", description="Model hub to download from.")
    hf_endpoint: str | None = Field(
        None,
        description="Mirror of the Hugging Face hub, e.g. `https://hf-mirror.com` (default: HF_ENDPOINT, "
        "else huggingface.co).",
    )
    output_dir: Folder = Field("output", description="Folder for runs.")
    lang: Literal["en", "zh"] | None = Field(None, description="Language of the messages (default: from the locale).")

    @field_validator("bits", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        return int(value) if isinstance(value, str) and value.isdecimal() else value  # a command line gives text


class MixPart(NamedTuple):
    """One adapter of --mix: its name without folders, the weight of its delta, and its folder."""

    name: str
    weight: float
    adapter: Path


@dataclass(frozen=True)
class ExportSource:
    """An adapter with its base model. `trained` is the run that the adapter lies in; None: a folder of its own.

    `modules` are the full names of the adapted layers. `tokenizer` is that of the training, with its chat template.
    `parts` are the adapters of --mix; then `trained`, `chat` and `tokenizer` are those of the first. `packed_base` is the
    folder of a base that MLX quantized to `packed_bits`, if `base` has its dequantized weights. `notes` are texts for the user.
    """

    adapter: Path
    config: AdapterConfig
    modules: list[str]
    base: FoundModel
    spec: ModelSpec
    base_files: dict[str, FileIdentity]
    trained: TrainedRun | None
    chat: ChatSettings
    tokenizer: ChatTokenizer
    trust_remote_code: bool
    parts: tuple[MixPart, ...] = ()
    packed_base: Path | None = None
    packed_bits: int = 0
    notes: tuple[str, ...] = ()

    @property
    def quantization(self) -> str:
        """How the training stored the base weights: none, 4bit or 8bit; none if no run is known."""
        return "none" if self.trained is None else self.trained.plan.quantization


class ExportJob(Protocol):
    """A checked export. `needed_bytes` is the disk space that it takes."""

    @property
    def needed_bytes(self) -> int:
        """Return the bytes that write() writes, at most."""
        ...

    def write(self, folder: Path, say: ProgressCallback) -> Certificate:
        """Write all files but export.json into the empty `folder`. Raises ExportError if they are not as they should."""
        ...


# What a target is in registry.EXPORTERS. It raises LorafitError for an export that cannot be made.
Check = Callable[[ExportSource, ExportRequest], ExportJob]
