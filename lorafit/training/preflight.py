"""Early checks of a run: the settings before the model is downloaded, the model before the data are read."""

from pathlib import Path

from lorafit.atomic import ensure_disk_space, ensure_writable
from lorafit.config import TrainConfig
from lorafit.data.hub_data import Subset
from lorafit.data.sources import check_source
from lorafit.errors import ConfigError
from lorafit.hardware.detect import Machine
from lorafit.messages import _, listed
from lorafit.models.lora_targets import select_targets
from lorafit.models.spec import TOKENIZER_FILES, ModelSpec
from lorafit.planner import device_precision
from lorafit.planner.effective_batch import resolve_effective_batch
from lorafit.planner.memory import adapter_parameters, targeted
from lorafit.planner.plan import Plan
from lorafit.run_folders.peft_form import MAMBA_NAMES, MAMBA_TYPES

MOMENTS_TOO = 3  # a checkpoint is three times the adapter: the weights and AdamW's two moments
MODELS = 3  # best_model, its successor while that is written, and final_model; each has a copy of the tokenizer


def check_settings(config: TrainConfig, machine: Machine, folder: Path) -> None:
    """Check everything that does not need the model. Raises LorafitErrors. `folder` is where the run will be written."""
    resolve_effective_batch(config)
    device = device_precision.choose_device(config, machine).value
    device_precision.precisions(config, machine, device)
    device_precision.choose_quantization(config, device)
    device_precision.choose_optimizer(config, device)
    subset = Subset(config.dataset_subset)
    check_source(config.dataset_name, config.dataset_split, config.encoding, subset, config.hub)
    ensure_writable(folder)
    if config.plan is not None:
        Plan.load(Path(config.plan))


def check_processes(config: TrainConfig, machine: Machine, local: int) -> None:
    """Raise ConfigError if `local` processes cannot train together on `machine`."""
    if (config.processes or 1) == 1:
        if config.shard == "on":
            fix = _("Add --processes N, start with torchrun, or remove --shard.")
            raise ConfigError(
                _("Splitting the base weights needs at least two processes."), where="--shard on", fix=fix
            )
        return
    device = device_precision.choose_device(config, machine).value
    gpus = sum(1 for gpu in machine.gpus if gpu.kind == "cuda")
    if device == "mps" or device_precision.choose_engine(config, machine, device).value != "torch":
        raise ConfigError(
            _("Apple GPUs and MLX support only one training process."),
            where=f"--processes {config.processes}",
            fix=_("Remove --processes, or use --device cpu --engine torch."),
        )
    if device == "cuda" and local > gpus:
        raise ConfigError(
            _("Not enough GPUs: each process needs its own."),
            where=f"--processes {local}",
            found=_("GPUs: {count}").format(count=gpus),
            fix=_("Set --processes to at most {count}, or use --device cpu.").format(count=gpus),
        )
    if config.shard == "on" and config.quantization in ("4bit", "8bit"):
        raise ConfigError(
            _("Weights that are split across the processes cannot be quantized."),
            where=f"--shard on --quantization {config.quantization}",
            fix=_("Remove one of the two: quantized weights already take less memory."),
        )


def check_model(config: TrainConfig, spec: ModelSpec, model_folder: Path, folder: Path) -> None:
    """Check everything that needs the model's architecture but not the data. Raises LorafitErrors.

    The free space of the disk is checked too. `folder` is that of `check_settings`.
    """
    check_targets(config.lora_targets, spec)
    size = 4 * adapter_parameters(spec, config.lora_r, config.lora_targets)
    # While a checkpoint is written there is one more than are kept; a resumed run has the others already.
    checkpoints = 1 if config.resume else config.keep_checkpoints + 1
    tokenizer = sum(file.stat().st_size for name in TOKENIZER_FILES if (file := model_folder / name).is_file())
    needed = checkpoints * (MOMENTS_TOO * size + tokenizer) + MODELS * (size + tokenizer)
    ensure_disk_space(folder, needed)


def layer_notes(lora_r: int, lora_targets: str, spec: ModelSpec) -> list[str]:
    """Return notes on the layers that get an adapter: on their width, and on what `peft` loads."""
    return [*_rank_notes(lora_r, lora_targets, spec), *_peft_notes(lora_targets, spec)]


def _rank_notes(lora_r: int, lora_targets: str, spec: ModelSpec) -> list[str]:
    """Return a note if the rank exceeds the width of a layer: a higher rank learns nothing more there."""
    widths = [min(linear.in_features, linear.out_features) for linear in targeted(spec, lora_targets)]
    narrow = sum(width < lora_r for width in widths)
    if not narrow:
        return []
    text = _(
        "lora_r {rank} exceeds the width of layers with an adapter ({narrow} of {count}; narrowest: {width}): "
        "`--lora_r {width}` learns as much there, in less memory."
    )
    return [text.format(rank=lora_r, narrow=narrow, count=len(widths), width=min(widths))]


def _peft_notes(lora_targets: str, spec: ModelSpec) -> list[str]:
    """Return a note if `peft` refuses to adapt some of the layers that get an adapter, known by model type and name."""
    names = {linear.name.rpartition(".")[2] for linear in targeted(spec, lora_targets)}
    refused = sorted(names & MAMBA_NAMES) if spec.model_type in MAMBA_TYPES else []
    if not refused:
        return []
    text = _(
        "`peft` does not load an adapter on {names} of {kind} models: the result will work in lorafit only. "
        "For `peft`, train without them: `--lora_targets {others}`."
    )
    others = ",".join(sorted(names - MAMBA_NAMES))
    return [text.format(names=listed(refused), kind=spec.model_type, others=others)]


def check_positions(model: str, spec: ModelSpec, longest: int, estimated: bool = False) -> list[str]:
    """Return notes on samples that are longer than the positions of the model. `longest` is in tokens.

    Raise ConfigError if the model cannot compute such samples, unless their lengths are `estimated`.
    """
    positions = spec.positions
    if positions is None or longest <= positions.limit:
        return []
    if positions.kind == "rope":
        kind = f"RoPE, {positions.scaling}" if positions.scaling else "RoPE"
        text = _(
            "The longest sample has {longest} tokens, but {model} was trained for {limit} positions ({kind}): answers "
            "are usually bad beyond them. Use `--max_length {limit}`, or a model for longer texts."
        )
        return [text.format(longest=longest, model=model, limit=positions.limit, kind=kind)]
    if estimated:
        text = _("{model} has {limit} positions: training refuses longer samples. Use `--max_length {limit}`.")
        return [text.format(model=model, limit=positions.limit)]
    raise ConfigError(
        _("The longest sample has more tokens than the model has positions."),
        where=model,
        found=_("longest sample: {longest} tokens; positions of the model: {limit}").format(
            longest=longest, limit=positions.limit
        ),
        fix=_("Truncate the samples: `--max_length {limit}`. Or use a model for longer texts.").format(
            limit=positions.limit
        ),
    )


def check_targets(targets: str, spec: ModelSpec) -> None:
    """Raise ConfigError if a name in `targets` matches no linear layer in the weight files.

    Quantized files may list no recognizable linear layer; then only the engine checks the names.
    """
    if spec.linears:
        select_targets([linear.name for linear in spec.linears], targets)
