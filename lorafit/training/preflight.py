"""Early checks of a run: the settings before the model is downloaded, the model before the data are read."""

from pathlib import Path

from lorafit.atomic import ensure_disk_space, ensure_writable
from lorafit.config import TrainConfig, resolve_effective_batch
from lorafit.data.sources import check_source
from lorafit.errors import AdapterError, ConfigError
from lorafit.hardware.detect import Machine
from lorafit.messages import _
from lorafit.models.lora_targets import select_targets
from lorafit.models.spec import ModelSpec
from lorafit.planner import device_precision
from lorafit.planner.memory import adapter_parameters
from lorafit.planner.plan import Plan
from lorafit.run_folders.adapter import AdapterConfig, check_shapes, read_adapter_config
from lorafit.run_folders.find_adapter import find_adapter

MOMENTS_TOO = 3  # a checkpoint is three times the adapter: the weights and AdamW's two moments


def check_settings(config: TrainConfig, machine: Machine, folder: Path, start: Path | None) -> None:
    """Check everything that does not need the model. Raises LorafitErrors.

    `folder` is where the run will be written, `start` the folder of the adapter to start from.
    """
    resolve_effective_batch(config)
    device = device_precision.choose_device(config, machine).value
    device_precision.precisions(config, machine, device)
    device_precision.choose_quantization(config, device)
    device_precision.choose_optimizer(config, device)
    check_source(config.dataset_name, config.dataset_split, config.encoding)
    ensure_writable(folder)
    if config.plan is not None:
        Plan.load(Path(config.plan))
    if start is not None:
        _check_start(config, start)


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


def check_model(config: TrainConfig, spec: ModelSpec, folder: Path, start: Path | None) -> None:
    """Check everything that needs the model's architecture but not the data. Raises LorafitErrors.

    The free space of the disk is checked too. `folder` and `start` are those of `check_settings`.
    """
    _check_targets(config.lora_targets, spec)
    if start is not None:
        check_shapes(start, spec)
    size = 4 * adapter_parameters(spec, config.lora_r, config.lora_targets)
    # While a checkpoint is written there is one more than are kept; a resumed run has the others already.
    # The 2 below are best_model and final_model.
    checkpoints = 1 if config.resume else config.keep_checkpoints + 1
    ensure_disk_space(folder, size * (MOMENTS_TOO * checkpoints + 2))


def init_adapter(config: TrainConfig) -> Path | None:
    """Return the folder of the adapter that --init_adapter names, or None. Raises AdapterError."""
    return None if config.init_adapter is None else find_adapter(config.init_adapter, Path(config.output_dir))


def _check_start(config: TrainConfig, folder: Path) -> None:
    """Raise AdapterError if rank or scale differ: the shapes would not match, or the weights would act differently."""
    adapter = read_adapter_config(folder)
    if adapter.r == config.lora_r and adapter.scale == config.lora_alpha / config.lora_r:
        return
    raise AdapterError(
        _("The adapter to start from has a different rank or scale than this run."),
        where=folder,
        found=_("adapter: lora_r {r}, lora_alpha {alpha:g}; this run: lora_r {run_r}, lora_alpha {run_alpha:g}").format(
            r=adapter.r, alpha=adapter.alpha, run_r=config.lora_r, run_alpha=config.lora_alpha
        ),
        fix=_("Use the adapter's own settings: {flags}").format(flags=_flags(adapter)),
    )


def _flags(adapter: AdapterConfig) -> str:
    return f"--lora_r {adapter.r} --lora_alpha {adapter.scale * adapter.r:g}"


def _check_targets(targets: str, spec: ModelSpec) -> None:
    """Raise ConfigError if a name in `targets` matches no linear layer in the weight files.

    Quantized files may list no recognizable linear layer; then only the engine checks the names.
    """
    if spec.linears:
        select_targets([linear.name for linear in spec.linears], targets)
