"""The settings of a training, each declared once with type, default, unit and help. `None` means automatic.

The command line, YAML files and docs/cli.md are derived from `TrainConfig`. Settings of kind *what* decide what is
learned and are kept on resume. Settings of kind *how* may change (docs/architecture.md, "The law").
"""

import difflib
import math
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pydantic
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo
from pydantic.fields import FieldInfo

from lorafit.atomic import read_errors
from lorafit.errors import ConfigError
from lorafit.messages import _, listed, phrases, sentences, translate
from lorafit.paths import require_text, user_path
from lorafit.units import ALL_LINEAR, MIB, TEMPLATE_DATE, bytes_text, canonical_targets, kind_text


def what(default: Any, help: str, **limits: Any) -> Any:
    """Declare a setting that decides what is learned."""
    return Field(default, description=help, json_schema_extra={"kind": "what"}, **limits)


def how(default: Any, help: str, **limits: Any) -> Any:
    """Declare a setting that decides only how training is computed, saved or shown."""
    return Field(default, description=help, json_schema_extra={"kind": "how"}, **limits)


LARGEST_FILE, MOST_VALUES, MOST_DIGITS = MIB, 100_000, 60  # of a settings file, with its aliases written out


def expand_home(text: str | None) -> str | None:
    """Return the path `text` with a home folder in place of `~`. Raise ConfigError if the home folder is unknown."""
    return str(user_path(text)) if text is not None and text.startswith("~") else text


Folder = Annotated[str, AfterValidator(expand_home)]  # a path setting


class TrainConfig(BaseModel):
    """The settings of a training run."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, protected_namespaces=(), allow_inf_nan=False)

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def refuse_switch(cls, value: Any, about: ValidationInfo) -> Any:
        """Refuse true and false for a number: `learning_rate: true` would be 1."""
        if isinstance(value, bool) and without_none(cls.model_fields[str(about.field_name)].annotation) in (int, float):
            raise ValueError(value)
        return value

    @pydantic.model_validator(mode="after")
    def _is_text(self) -> "TrainConfig":
        """Refuse bytes that are not UTF-8: the run's files are, and could not hold the setting."""
        for name in self.model_fields_set:
            value = getattr(self, name)
            if isinstance(value, str):
                require_text(name, value)
        return self

    # Model and data
    model_name: str = what(
        "meta-llama/Llama-3.2-3B-Instruct", "Base model: a folder, a model ID (e.g. `Qwen/Qwen3-0.6B`), or `demo`."
    )
    dataset_name: str = what(
        "Skepsun/lawyer_llama_data",
        "Training data: a file (JSON, JSONL, CSV, TSV, XLSX, Parquet, Arrow; .gz, .zst, .zip), a folder, "
        "a dataset ID, or `demo`; separate several with commas.",
    )
    dataset_split: str = what("train", "Split and slice of the data, e.g. `train[:1000]` or `train[10%:20%]`.")
    dataset_subset: str | None = what(
        None, "Subset (configuration) of a dataset on Hugging Face, if it has several; an error lists them."
    )
    encoding: str | None = what(
        None,
        "Encoding of text files that are not UTF-8, e.g. `cp1252` (default: detected for Chinese, Japanese, Korean).",
    )
    valid_dataset: str | None = what(
        None, "Separate validation data, written like dataset_name (default: split off by val_size)."
    )
    valid_split: str = what("train", "Split and slice of valid_dataset, e.g. `validation`.")
    valid_subset: str | None = what(None, "Subset of valid_dataset, as dataset_subset.")
    field_map: str | None = what(
        None, "Keys of the data to rename, as THEIRS=OURS, e.g. `title=instruction,solution=output`."
    )
    context_field: str | None = what(None, "Key of a text to put before the question, e.g. `laws`.")
    train_on: Literal["all", "last"] = what(
        "all", "Compute the loss on every assistant message, or on the last one only."
    )
    thoughts: Literal["keep", "drop"] = what(
        "keep", "Thoughts before answers (e.g. <think>...</think>): learn them, or remove them from the rows."
    )
    chat_template: str | None = what(
        None, "Chat template: a Jinja file, or the template itself (default: the model's own, else plain ChatML)."
    )
    max_rejects: float = how(0.05, "Highest share of rejected rows; above it, training does not start.", ge=0, le=1)
    max_samples: int | None = what(None, "Use only the first N samples (default: all).", ge=1)
    val_size: float = what(
        0.05, "Size of the validation set: a share below 1 (at most 200 rows), or a number of rows; 0: none.", ge=0
    )
    system_prompt: str | None = what(None, "System prompt for conversations without one (default: the template's own).")
    date_string: str = what(TEMPLATE_DATE, "Date that chat templates with a date write into every sample.")
    init_adapter: str | None = what(
        None, "Adapter that training starts from, with its rank, alpha and layers (default: new weights)."
    )

    # Training
    num_epochs: float = what(3.0, "Number of epochs.", gt=0)
    max_steps: int | None = what(None, "Number of steps (default: by num_epochs).", ge=1)
    effective_batch: int | None = what(
        None, "Effective batch size: samples per step, over all processes (default: 16; with --demo 8).", ge=1
    )
    batch_size: int | None = how(None, "Highest number of samples in a micro-batch (default: automatic).", ge=1)
    gradient_accumulation_steps: int | None = how(
        None, "Gradient accumulation; with batch_size, sets effective_batch = batch_size x this value.", ge=1
    )
    learning_rate: float = what(1e-4, "Peak learning rate.", gt=0)
    lr_scheduler: Literal["cosine", "linear", "constant"] = what("cosine", "Learning rate schedule after the warm-up.")
    warmup_ratio: float = what(0.05, "Warm-up: share of the steps over which the learning rate rises.", ge=0, le=1)
    weight_decay: float = what(0.0, "Weight decay of AdamW.", ge=0)
    adam_beta1: float = what(0.9, "AdamW beta1: decay rate of the mean gradient.", ge=0, lt=1)
    adam_beta2: float = what(0.999, "AdamW beta2: decay rate of the mean squared gradient.", ge=0, lt=1)
    adam_epsilon: float = what(1e-8, "Epsilon of AdamW.", gt=0)
    max_grad_norm: float = what(1.0, "Norm that the gradient of each step is clipped to; 0: no clipping.", ge=0)
    max_length: int = what(
        512, "Longest sample in tokens; of longer ones, the longer of question and answer is truncated.", ge=8
    )
    seed: int = what(42, "Random seed of order, initialization and dropout.", ge=0, lt=2**32)

    # Adapter
    lora_r: int = what(32, "Rank (r) of the adapter.", ge=1)
    lora_alpha: float = what(64.0, "Alpha of the adapter, which is scaled by lora_alpha / lora_r.", gt=0)
    lora_dropout: float = what(0.0, "Dropout rate before the adapter.", ge=0, lt=1)
    lora_targets: Annotated[str, AfterValidator(canonical_targets)] = what(
        ALL_LINEAR,
        "Linear layers that get an adapter: `all-linear`, `attention`, `mlp` or names, e.g. `attention,up_proj`.",
    )

    # Machine
    engine: Literal["auto", "mlx", "torch"] = how(
        "auto", "Engine (auto: MLX on Apple Silicon if installed, else PyTorch)."
    )
    device: Literal["auto", "cuda", "mps", "cpu"] = how("auto", "Device to train on.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = how("auto", "Precision of base weights and computation.")
    quantization: Literal["auto", "none", "4bit", "8bit"] = what("auto", "Quantization of the base weights.")
    optimizer: Literal["auto", "adamw", "paged_adamw_8bit"] = what(
        "auto", "Optimizer (auto: paged_adamw_8bit on CUDA, else adamw)."
    )
    token_budget: int | None = how(None, "Tokens per micro-batch (default: automatic).", ge=1)
    recompute: int | None = how(
        None, "Number of layers with gradient checkpointing, which saves memory (default: automatic).", ge=0
    )
    allocator: Literal["auto", "fast", "lean", "default"] = how(
        "auto", "Memory allocation by the C library (Linux): fast keeps freed memory, lean returns it at once."
    )
    compile: Literal["auto", "on", "off"] = how(
        "auto", "torch.compile for each layer on the generic path (auto: if the run is long enough to pay off)."
    )
    processes: int | None = how(
        None,
        "Training processes on this machine, one per GPU (default: one; torchrun sets its own number).",
        ge=1,
    )
    shard: Literal["auto", "on", "off"] = how(
        "auto", "Split the base weights across the processes (auto: if one process cannot hold them alone)."
    )
    trust_remote_code: bool = how(False, "Run code that comes with the model. Only for models whose author you trust.")
    hang_seconds: float = how(300.0, "Seconds without progress after which the training process is restarted.", gt=0)
    recycle_every: int | None = how(
        None,
        "Restart the training process every N steps; the result is the same (default: only "
        "if Metal runs out of buffers).",
        ge=1,
    )
    pause_battery: float = how(
        20.0,
        "Battery level in percent; below it and on battery, training is saved and pauses until there is power.",
        ge=0,
        le=100,
    )

    # Download and output
    hub: Literal["huggingface", "modelscope"] = how("huggingface", "Model hub to download from.")
    hf_endpoint: str | None = how(
        None,
        "Mirror of the Hugging Face hub, e.g. `https://hf-mirror.com` (default: HF_ENDPOINT, else huggingface.co).",
    )
    output_dir: Folder = how("output", "Folder for runs.")
    save_steps: int | None = how(None, "Steps between checkpoints (default: about every ten minutes).", ge=1)
    eval_steps: int | None = how(None, "Steps between evaluations (default: at most a twentieth of the time).", ge=1)
    keep_checkpoints: int = how(2, "Number of latest checkpoints to keep.", ge=1)

    # This command
    config: str | None = how(None, "YAML file to read settings from; flags take precedence.")
    plan: str | None = how(None, "plan.json with the plan to use again.")
    resume: str | None = how(None, "Run to resume: its folder or name; without a value, the latest.")
    demo: bool = how(
        False, "Train the built-in model on the built-in Chinese legal questions; other flags take precedence."
    )
    dry_run: bool = how(False, "Do everything up to the first step, then stop and leave no files.")
    no_preflight: bool = how(False, "Start at once, without the preflight check, which measures a few micro-batches.")
    notify: str | None = how(None, "Command to run with a title and a text when the run ends, e.g. `ntfy publish me`.")
    no_supervisor: bool = how(
        False, "Train in this process, e.g. under a debugger; nothing restarts it after a failure."
    )
    lang: Literal["en", "zh"] | None = how(None, "Language of the messages (default: from the locale).")


def sections() -> dict[str, str]:
    """Return the headings of the help text, keyed by the first setting below each heading."""
    return {
        "model_name": _("Model and data"),
        "num_epochs": _("Training"),
        "lora_r": _("Adapter"),
        "engine": _("Machine"),
        "hub": _("Download and output"),
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


def read_yaml(path: Path, encoding: str = "utf-8") -> dict[str, Any]:
    """Return the settings in a YAML file; hyphens in keys become underscores. Raise ConfigError, also if there are none."""
    try:
        with read_errors(path):
            text = _read_settings_file(path, encoding)
        settings = _load_yaml(text, path)
    except FileNotFoundError:
        raise ConfigError(
            _("Settings file not found."), where=path, fix=_("Check the path given to --config.")
        ) from None
    except UnicodeDecodeError as error:
        what, fix = _("The settings file is not UTF-8 text."), _("Save the file as UTF-8 in a text editor.")
        raise ConfigError(what, where=path, found=error, fix=fix) from None
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        fix = _("Write one setting per line, as in `lora_r: 16`; put texts with `:`, `#` or brackets in quotes.")
        raise ConfigError(_("The settings file cannot be read as YAML."), where=path, found=error, fix=fix) from None
    if not isinstance(settings, dict | None):
        raise ConfigError(
            _("The settings file does not consist of names and values."),
            where=path,
            found=kind_text(settings),
            fix=_("Write one setting per line, as in `lora_r: 16`."),
        )
    if not settings:
        fix = _("Write one setting per line, as in `lora_r: 16`.")
        raise ConfigError(_("The settings file contains no settings."), where=path, fix=fix)
    return {str(key).replace("-", "_"): value for key, value in settings.items()}


def _read_settings_file(path: Path, encoding: str) -> str:
    """Return the text of a settings file. Raise ConfigError if it is too large to be one."""
    if path.stat().st_size > LARGEST_FILE:
        what = _("The settings file is larger than {size}.").format(size=bytes_text(LARGEST_FILE))
        raise ConfigError(what, where=path, fix=_("Give a YAML file with settings to --config."))
    return path.read_text(encoding)


def _load_yaml(text: str, path: Path) -> Any:
    """Return the value of a YAML text. Raise ConfigError for a name that stands twice, or aliases that grow."""
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _check_size(root, path, {})
        if isinstance(root, yaml.MappingNode):
            _refuse_repeated(root, path)
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _check_size(node: yaml.Node, path: Path, sizes: dict[int, float]) -> float:
    """Return the number of values in `node` with each alias (`*name`) written out. Raise ConfigError if it is huge.

    `sizes` has the numbers of the nodes that were counted, and infinity for a node that contains itself.
    """
    if id(node) in sizes:
        return sizes[id(node)]
    if node.tag.endswith(":int") and len(node.value) > MOST_DIGITS:
        raise ValueError(node.value[:MOST_DIGITS])  # Python writes no number that is much longer
    sizes[id(node)] = math.inf
    parts = node.value if isinstance(node, yaml.CollectionNode) else []
    parts = [one for pair in parts for one in pair] if isinstance(node, yaml.MappingNode) else parts
    size = 1 + sum(_check_size(part, path, sizes) for part in parts)
    if size > MOST_VALUES:
        what = _("The settings file has more than {most} values.").format(most=f"{MOST_VALUES:,}")
        found = _("an alias (`*name`) counts as all the values that it stands for")
        raise ConfigError(what, where=path, found=found, fix=_("Write the values without aliases."))
    sizes[id(node)] = size
    return size


def _refuse_repeated(root: yaml.MappingNode, path: Path) -> None:
    """Raise ConfigError if a setting has two values: YAML's readers would take the last one in silence."""
    lines: dict[str, int] = {}
    for key, _value in root.value:
        name, line = str(key.value).replace("-", "_"), key.start_mark.line + 1
        if name in lines:
            raise ConfigError(
                _("`{name}` is set twice in the settings file.").format(name=name),
                where=path,
                found=_("in line {first} and in line {second}").format(first=lines[name], second=line),
                fix=_("Keep one of the two."),
            )
        lines[name] = line


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
            else _("Run `lorafit train --help` for the list of settings.")
        )
        raise ConfigError(_("Unknown setting `{name}`.").format(name=key), where=where, found=key, fix=fix)
    raise setting_error(TrainConfig, key, error["input"], where)


def setting_error(kind: type[BaseModel], name: str, value: object, where: object) -> ConfigError:
    """Return the error for a `value` that the setting `name` does not accept."""
    field = kind.model_fields[name]
    helps = [translate(field.description or "")]
    if field.default is not None:
        helps.append(_("Default: {default}.").format(default=field.default))
    return ConfigError(
        _("Invalid value for `{name}`.").format(name=name),
        where=where,
        found=f"{name}: {'null' if value is None else repr(value)}",
        fix=sentences([_("Give a valid value ({wanted}).").format(wanted=accepted_values(field)), *helps]),
    )


def accepted_values(field: FieldInfo) -> str:
    """Return a text for the values that `field` accepts: "a whole number >= 1", "auto, cuda, mps, cpu"."""
    kinds = {bool: _("true or false"), int: _("a whole number"), float: _("a number"), str: _("text")}
    if few := choices(field):
        return listed(few)
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    limits = [f"{sign} {getattr(m, name)}" for m in field.metadata for name, sign in signs.items() if hasattr(m, name)]
    return " ".join([kinds[without_none(field.annotation)], phrases(limits)]).strip()


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
