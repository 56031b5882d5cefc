"""Settings that chat and compare share, and the choice of base model, tokenizer, engine, device and precision."""

from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from lorafit.atomic import read_errors
from lorafit.config import Folder, TrainConfig
from lorafit.engines.tokenizer import ChatTokenizer, Thinking, load_tokenizer
from lorafit.errors import AdapterError, ConfigError, DataError
from lorafit.hardware.detect import Machine
from lorafit.messages import _
from lorafit.models.spec import TOKENIZER_FILES, ModelSpec
from lorafit.planner import device_precision, memory_budget, prequantized
from lorafit.planner.memory import weights_bytes
from lorafit.run_folders.adapter import ChatSettings, read_adapter_config


class AnswerRequest(BaseModel):
    """Settings of a model that answers, and of its answers."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    base_model: str | None = Field(
        None, description="Base model: a folder, a model ID, or `demo` (default: the adapter's base model)."
    )
    temperature: float = Field(0.7, description="Sampling temperature; 0: always the most likely token.", ge=0)
    top_p: float = Field(
        0.9,
        description="Top-p sampling: choose among the most likely tokens that together have this share.",
        gt=0,
        le=1,
    )
    max_new_tokens: int = Field(512, description="Longest answer in tokens.", ge=1)
    seed: int = Field(42, description="Random seed of sampling; the same seed gives the same answers.", ge=0)
    system_prompt: str | None = Field(
        None, description="System prompt (default: the one the adapter was trained with)."
    )
    thinking: Thinking = Field(
        "as_trained",
        description="Thoughts of a reasoning model: `on` or `off` by the chat template's switch, or as in the training.",
    )
    engine: Literal["auto", "mlx", "torch"] = Field(
        "auto", description="Engine (auto: MLX on Apple Silicon if installed, else PyTorch)."
    )
    device: Literal["auto", "cuda", "mps", "cpu"] = Field("auto", description="Device for generating answers.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="Precision of the weights.")
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


def base_name(request: AnswerRequest, adapter: Path | None) -> str:
    """Return the requested base model, else the base model of the adapter. Raises ConfigError or AdapterError."""
    if request.base_model is not None:
        return request.base_model
    if adapter is None:
        raise ConfigError(
            _("No model given."),
            fix=_(
                "Name a run, e.g. `lorafit chat latest` (`lorafit runs` lists them), or a base model with --base_model."
            ),
        )
    base_model = read_adapter_config(adapter).base_model
    if base_model is None:
        raise AdapterError(
            _("The adapter does not name its base model."),
            where=adapter,
            fix=_("Name the base model with --base_model."),
        )
    return base_model


def tokenizer_folder(adapter: Path | None, base: Path) -> Path:
    """Return the adapter's folder if it has tokenizer files, else the folder of the base model."""
    own = adapter is not None and any((adapter / name).is_file() for name in TOKENIZER_FILES)
    return adapter if adapter is not None and own else base


def answering_tokenizer(
    request: AnswerRequest, adapter: Path | None, base: Path, settings: ChatSettings
) -> ChatTokenizer:
    """Return the tokenizer of `adapter` or `base`, whose prompts are as `request` asks. Raises LorafitErrors."""
    loaded = load_tokenizer(tokenizer_folder(adapter, base), trust_remote_code=request.trust_remote_code)
    return loaded.answering(request.thinking, settings.untrained_end)


class Backend(NamedTuple):
    """The engine, device and precision that compute answers."""

    engine: str
    device: str
    precision: str


def choose_backend(request: AnswerRequest, machine: Machine, spec: ModelSpec) -> Backend:
    """Choose engine, device and precision as for training.

    The precision is the first candidate whose weights fit into memory, else the last and smallest candidate.
    """
    config = TrainConfig(engine=request.engine, device=request.device, precision=request.precision)
    device = device_precision.choose_device(config, machine).value
    chosen = device_precision.choose_engine(config, machine, device)
    engine = (prequantized.choose_engine(config, machine, device, chosen, spec.packed) if spec.packed else chosen).value
    precisions = device_precision.precisions(config, machine, device, engine)
    available = memory_budget.available_bytes(machine, device)
    fitting = [p for p in precisions if weights_bytes(spec, p, "none") <= memory_budget.MARGIN * available]
    return Backend(engine, device, (fitting or precisions[-1:])[0])


def read_questions(path: Path) -> list[str]:
    """Return the questions of a text file, one per line, without blank lines. Raise DataError."""
    try:
        with read_errors(path):
            lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            _("The file of questions cannot be read."),
            where=path,
            found=error,
            fix=_("Give a UTF-8 text file with one question per line."),
        ) from None
    if not any(lines):
        raise DataError(_("The file contains no questions."), where=path, fix=_("Write one question per line."))
    return [line for line in lines if line]
