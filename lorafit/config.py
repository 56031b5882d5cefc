"""The settings of a training, each declared once with type, default, unit and help. `None` means automatic.

The command line, YAML files and docs/cli.md are derived from `TrainConfig`. Settings of kind *what* decide what is
learned and are kept on resume. Settings of kind *how* may change (docs/architecture.md, "The law").
"""

import difflib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from lorafit.errors import ConfigError
from lorafit.messages import _, listed, translate
from lorafit.units import TEMPLATE_DATE


def what(default: Any, help: str, **limits: Any) -> Any:
    """Declare a setting that decides what is learned."""
    return Field(default, description=help, json_schema_extra={"kind": "what"}, **limits)


def how(default: Any, help: str, **limits: Any) -> Any:
    """Declare a setting that decides only how training is computed, saved or shown."""
    return Field(default, description=help, json_schema_extra={"kind": "how"}, **limits)


class TrainConfig(BaseModel):
    """The settings of a training run."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, protected_namespaces=(), allow_inf_nan=False)

    # Model and data
    model_name: str = what("meta-llama/Llama-3.2-3B-Instruct", "Base model: a folder, a hub id, or `demo`.")
    dataset_name: str = what(
        "Skepsun/lawyer_llama_data",
        "Training data: a file (JSON, JSONL, CSV, TSV, Parquet, Arrow; .gz, .zst), a folder, a hub id, or `demo`; "
        "several with commas between.",
    )
    dataset_split: str = what("train", "Split and slice of the data, e.g. `train[:1000]` or `train[10%:20%]`.")
    valid_dataset: str | None = what(None, "Validation data of its own, named like dataset_name (None: by val_size).")
    valid_split: str = what("train", "Split and slice of valid_dataset, e.g. `validation`.")
    field_map: str | None = what(
        None, "Other names of the data's keys, THEIRS=OURS, e.g. `title=instruction,solution=output`."
    )
    context_field: str | None = what(None, "Key of a text that goes before the question, e.g. `laws`.")
    train_on: Literal["all", "last"] = what("all", "Learn all of the assistant's turns, or the last one only.")
    chat_template: str | None = what(
        None, "Chat template: a Jinja file, or the template itself (None: the model's own, else plain ChatML)."
    )
    max_rejects: float = how(0.05, "Share of the rows that may be bad; more stop before training.", ge=0, le=1)
    max_samples: int | None = what(None, "Use only the first N samples (None: all).", ge=1)
    val_size: float = what(
        0.05, "Held out for validation: a share below 1 (at most 200 rows), or a number of rows; 0: none.", ge=0
    )
    system_prompt: str | None = what(None, "System text for conversations that have none (None: the template's own).")
    date_string: str = what(TEMPLATE_DATE, "The date that templates with a date write into every sample.")
    init_adapter: str | None = what(None, "Start from this adapter's weights instead of fresh ones.")

    # Training
    num_epochs: float = what(3.0, "Times that every training row is seen.", gt=0)
    max_steps: int | None = what(None, "Stop after this many optimizer steps (None: by num_epochs).", ge=1)
    effective_batch: int | None = what(
        None, "Samples an optimizer step learns from, over all processes (None: 16).", ge=1
    )
    batch_size: int | None = how(None, "At most this many samples in a micro-batch (None: the planner chooses).", ge=1)
    gradient_accumulation_steps: int | None = how(
        None, "With batch_size it sets effective_batch = batch_size x this.", ge=1
    )
    learning_rate: float = what(1e-4, "Peak learning rate.", gt=0)
    lr_scheduler: Literal["cosine", "linear", "constant"] = what(
        "cosine", "Shape of the learning rate after the warm-up."
    )
    warmup_ratio: float = what(0.05, "Share of the steps over which the learning rate rises.", ge=0, le=1)
    weight_decay: float = what(0.0, "AdamW's weight decay.", ge=0)
    adam_beta1: float = what(0.9, "AdamW's decay of the mean gradient.", ge=0, lt=1)
    adam_beta2: float = what(0.999, "AdamW's decay of the mean squared gradient.", ge=0, lt=1)
    adam_epsilon: float = what(1e-8, "AdamW's epsilon.", gt=0)
    max_grad_norm: float = what(1.0, "Clip the step's gradient to this norm; 0: never.", ge=0)
    max_length: int = what(512, "Longest sample in tokens; of longer ones the middle of the question goes first.", ge=8)
    seed: int = what(42, "Decides order, initialisation and dropout.", ge=0, lt=2**32)

    # Adapter
    lora_r: int = what(32, "Rank of the adapter.", ge=1)
    lora_alpha: float = what(64.0, "The adapter is scaled by lora_alpha / lora_r.", gt=0)
    lora_dropout: float = what(0.0, "Dropout before the adapter.", ge=0, lt=1)
    lora_targets: str = what(
        "all-linear", "Linear layers that get an adapter: `all-linear`, or names, e.g. `q_proj,v_proj`."
    )

    # Machine
    engine: Literal["auto", "mlx", "torch"] = how(
        "auto", "What computes (auto: MLX on Apple Silicon where it is installed, else PyTorch)."
    )
    device: Literal["auto", "cuda", "mps", "cpu"] = how("auto", "Device to train on.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = how("auto", "Number format of base weights and arithmetic.")
    quantization: Literal["auto", "none", "4bit", "8bit"] = what("auto", "Quantise the base weights.")
    optimizer: Literal["auto", "adamw", "paged_adamw_8bit"] = what(
        "auto", "Optimizer (auto: paged_adamw_8bit on CUDA)."
    )
    token_budget: int | None = how(None, "Tokens in a micro-batch (None: the planner chooses).", ge=1)
    recompute: int | None = how(
        None, "Layers that recompute their activations to save memory (None: the planner chooses).", ge=0
    )
    allocator: Literal["auto", "fast", "lean", "default"] = how(
        "auto", "How the C library hands out memory (Linux): fast keeps what it took, lean gives it back at once."
    )
    compile: Literal["auto", "on", "off"] = how(
        "auto", "Compile each layer by torch.compile, on the generic path (auto: where a run is long enough to pay)."
    )
    processes: int | None = how(
        None,
        "Processes on this machine that train together, one a GPU (None: one; torchrun sets its own number).",
        ge=1,
    )
    shard: Literal["auto", "on", "off"] = how(
        "auto", "Share the base's weights out over the processes (auto: where one alone cannot hold them)."
    )
    trust_remote_code: bool = how(False, "Run code that comes with the model. Only for models whose author you trust.")
    hang_seconds: float = how(300.0, "Restart the worker after this long without progress.", gt=0)
    recycle_every: int | None = how(
        None,
        "Take a fresh process every so many steps; the result is the same (None: only where handles run out).",
        ge=1,
    )
    pause_battery: float = how(
        20.0, "On battery below this many percent: save and pause until there is power.", ge=0, le=100
    )

    # Download and output
    hub: Literal["huggingface", "modelscope"] = how("huggingface", "Hub that names are looked up on.")
    hf_endpoint: str | None = how(
        None, "Mirror of the Hugging Face hub, e.g. https://hf-mirror.com (None: HF_ENDPOINT, else the hub)."
    )
    output_dir: str = how("output", "Folder for runs.")
    save_steps: int | None = how(None, "Steps between checkpoints (None: about every ten minutes).", ge=1)
    eval_steps: int | None = how(None, "Steps between evaluations (None: a twentieth of the time).", ge=1)
    keep_checkpoints: int = how(2, "How many of the latest checkpoints to keep.", ge=1)

    # This command
    config: str | None = how(None, "Read settings from this YAML file; flags beside it win.")
    plan: str | None = how(None, "Repeat the plan in this plan.json.")
    resume: str | None = how(None, "Go on with a run: its folder, or nothing for the latest.")
    demo: bool = how(False, "Train the embedded model on the embedded Chinese legal questions; flags beside it win.")
    dry_run: bool = how(False, "Do everything up to the first step, then stop and leave nothing behind.")
    no_preflight: bool = how(False, "Begin at once, without measuring a few micro-batches first.")
    notify: str | None = how(
        None, "Run this command with a title and a text when the run ends, e.g. `ntfy publish me`."
    )
    no_supervisor: bool = how(False, "Train in this very process, e.g. under a debugger: nothing restarts it.")
    lang: Literal["en", "zh"] | None = how(None, "Language to speak (None: by locale).")


def sections() -> dict[str, str]:
    """Return the headings of the help text, keyed by the first setting below each heading."""
    return {
        "model_name": _("What to train on what"),
        "num_epochs": _("How long and how fast to learn"),
        "lora_r": _("The adapter"),
        "device": _("The machine"),
        "hub": _("Where things come from and go"),
        "config": _("This command"),
    }


SUPERVISOR_FIELDS = ("hang_seconds", "recycle_every", "pause_battery")  # the plan does not depend on these
COMMAND_FIELDS = ("config", "plan", "resume", "dry_run", "no_preflight", "notify", "no_supervisor", "lang")
DEMO_PRESET: dict[str, Any] = {
    "demo": True, "model_name": "demo", "dataset_name": "demo", "max_length": 384, "num_epochs": 1.0,
    "learning_rate": 5e-4, "lora_r": 16, "lora_alpha": 32.0, "val_size": 20.0,
}  # fmt: skip


def what_fields() -> list[str]:
    """Return the names of the settings that decide what is learned."""
    extras = {name: f.json_schema_extra for name, f in TrainConfig.model_fields.items()}
    return [name for name, extra in extras.items() if isinstance(extra, dict) and extra["kind"] == "what"]


def resolve_effective_batch(config: TrainConfig) -> int:
    """Return the samples per step: effective_batch, batch_size x gradient_accumulation_steps, or the default.

    The default is 16, or 8 with `demo`. Raise ConfigError if all three settings are given and disagree.
    """
    size, accumulation, effective = config.batch_size, config.gradient_accumulation_steps, config.effective_batch
    if size is None or accumulation is None:
        return effective or (8 if config.demo else 16)
    if effective is not None and effective != size * accumulation:
        raise ConfigError(
            _("The three batch settings disagree."),
            where="batch_size x gradient_accumulation_steps, effective_batch",
            found=f"{size} x {accumulation} = {size * accumulation}, effective_batch = {effective}",
            fix=_("Leave one of them out, or make batch_size x gradient_accumulation_steps equal to effective_batch."),
        )
    return size * accumulation


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the settings in a YAML file; hyphens in keys become underscores. Raise ConfigError."""
    try:
        settings = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            _("There is no such settings file."), where=path, fix=_("Check the path given to --config.")
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        fix = _("Write one setting a line, as in `lora_r: 16`; texts with `:`, `#` or brackets go in quotes.")
        raise ConfigError(_("The settings file cannot be read as YAML."), where=path, found=error, fix=fix) from None
    if not isinstance(settings, dict | None):
        raise ConfigError(
            _("A settings file holds names and values."),
            where=path,
            found=type(settings).__name__,
            fix=_("Write one setting a line, as in `lora_r: 16`."),
        )
    return {str(key).replace("-", "_"): value for key, value in (settings or {}).items()}


def make_config(settings: dict[str, Any], where: object) -> TrainConfig:
    """Return the config of `settings`. Raise ConfigError, located at `where`, for an unknown key or invalid value."""
    try:
        return TrainConfig.model_validate(settings)
    except ValidationError as invalid:
        error = invalid.errors()[0]
    key = str(error["loc"][0]) if error["loc"] else "?"
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, TrainConfig.model_fields, n=1)
        fix = (
            _("Did you mean `{name}`?").format(name=near[0])
            if near
            else _("`lorafit train --help` lists all settings.")
        )
        raise ConfigError(_("Unknown setting `{name}`.").format(name=key), where=where, found=key, fix=fix)
    raise setting_error(TrainConfig, key, error["input"], where)


def setting_error(kind: type[BaseModel], name: str, value: object, where: object) -> ConfigError:
    """Return the error for a `value` that the setting `name` does not accept."""
    field = kind.model_fields[name]
    return ConfigError(
        _("Setting `{name}` has a value that it cannot take.").format(name=name),
        where=where,
        found=f"{name}: {value!r}",
        fix=_("Wanted: {wanted}. {help} Default: {default}.").format(
            wanted=accepted_values(field), help=translate(field.description or ""), default=field.default
        ),
    )


def accepted_values(field: FieldInfo) -> str:
    """Return a text for the values that `field` accepts: "a whole number >= 1", "auto, cuda, mps, cpu"."""
    kinds = {bool: _("true or false"), int: _("a whole number"), float: _("a number"), str: _("text")}
    if few := choices(field):
        return listed(few)
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    limits = [f"{sign} {getattr(m, name)}" for m in field.metadata for name, sign in signs.items() if hasattr(m, name)]
    return " ".join([kinds[without_none(field.annotation)], listed(limits)]).strip()


def is_switch(field: FieldInfo) -> bool:
    """Return whether `field` is a flag without a value."""
    return field.annotation is bool


def choices(field: FieldInfo) -> list[str]:
    """Return the fixed choices of `field`; none if it is not a Literal."""
    kind = without_none(field.annotation)
    return list(map(str, get_args(kind))) if get_origin(kind) is Literal else []


def without_none(annotation: Any) -> Any:
    """Return `int` for `int | None`, and any other annotation unchanged."""
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    return kinds[0] if type(None) in get_args(annotation) else annotation


def write_yaml(config: TrainConfig, path: Path) -> None:
    """Write the settings of `config` as YAML, without COMMAND_FIELDS, which apply to one command only."""
    settings = config.model_dump(exclude=set(COMMAND_FIELDS))
    path.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), "utf-8")
