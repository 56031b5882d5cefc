"""Choices of device, engine, precision, quantization and optimizer.

Each is a `Choice` whose reason is a complete line for the user.
"""

from importlib.util import find_spec

from lorafit.config import TrainConfig
from lorafit.errors import ConfigError, HardwareError
from lorafit.hardware.catalogue.nvidia import OLDER_BUILD, OLDEST_CAPABILITY
from lorafit.hardware.detect import Gpu, Machine
from lorafit.messages import _, aside, clauses
from lorafit.planner.plan import Choice
from lorafit.units import bytes_text

MLX_INSTALL = "pip install 'lorafit[mlx]'"
# Older PyTorch silently returns wrong matmul results on M1 and M2 where a dimension exceeds 32767.
MPS_FIXED_VERSION = (2, 14)


def choose_device(config: TrainConfig, machine: Machine) -> Choice:
    """Choose the device: the requested one, else CUDA, else MPS, else the CPU.

    Raise HardwareError if the requested device is not available, or if PyTorch's MPS matmuls are wrong on this chip.
    """
    cuda, mps = machine.gpu("cuda"), machine.gpu("mps")
    if config.device == "cpu":
        return Choice(
            "device",
            "cpu",
            _("✓ CPU ({chip}, cores: {cores}), as requested").format(chip=machine.chip, cores=machine.cores),
        )
    if config.device == "cuda" and (cuda is None or machine.torch_cuda is None):
        raise HardwareError(_("No CUDA GPU is available to PyTorch."), found=_found(machine), fix=_cuda_fix(cuda))
    if config.device == "mps" and mps is None:
        raise HardwareError(
            _("No Apple GPU (MPS) is available on this machine."),
            found=_found(machine),
            fix=_("Remove --device, or use --device cpu."),
        )
    if cuda and machine.torch_cuda and config.device != "mps":
        return Choice("device", "cuda", _("✓ NVIDIA GPU (CUDA) found: {gpu}").format(gpu=_gpu_text(cuda)))
    if mps:
        if config.engine == "torch" or not has_mlx(machine):
            _refuse_wrong_mps(machine)
        return Choice("device", "mps", _("✓ Apple Silicon (MPS) found"))
    return Choice("device", "cpu", _cpu_reason(machine, cuda))


def old_gpu(machine: Machine, device: str) -> list[Choice]:
    """Return a warning if PyTorch's current CUDA builds do not support the GPU, else an empty list."""
    gpu = machine.gpu(device)
    capability = (gpu and gpu.compute_capability) or OLDEST_CAPABILITY
    if device != "cuda" or gpu is None or capability >= OLDEST_CAPABILITY:
        return []
    text = _(
        "⚠️  {gpu}: current PyTorch CUDA builds support only Turing and newer; install one "
        "that still supports it with `{command}`, or use a T4 or L4"
    )
    return [Choice("pytorch", OLDER_BUILD.split("'")[1], text.format(gpu=gpu.name, command=OLDER_BUILD))]


def choose_engine(config: TrainConfig, machine: Machine, device: str) -> Choice:
    """Choose the engine: the requested one, else MLX on Apple's GPU, else PyTorch.

    MLX is chosen only for one process, and only if it is installed or the machine is described by name. Raise ConfigError
    if MLX is requested but is not installed, does not support `device`, or has several processes.
    """
    if config.engine == "mlx":
        _refuse_no_mlx(machine, device)
        _refuse_several(config)
        return Choice("engine", "mlx", _("✓ MLX, as requested"))
    if config.engine == "torch":
        return Choice("engine", "torch", _("✓ PyTorch, as requested"))
    if device == "mps" and has_mlx(machine) and (config.processes or 1) == 1:
        return Choice("engine", "mlx", _("✓ MLX: fastest on Apple Silicon (`--engine torch` uses PyTorch's MPS)"))
    if device == "mps" and not has_mlx(machine):
        text = _("⚠️  Using PyTorch's MPS: MLX, the fastest engine on Apple Silicon, is not installed ({command})")
        return Choice("engine", "torch", text.format(command=MLX_INSTALL))
    return Choice("engine", "torch", _("✓ PyTorch"))


def has_mlx(machine: Machine) -> bool:
    """Return whether MLX is available: installed, or assumed because the machine is described by name."""
    return machine.described or all(find_spec(name) is not None for name in ("mlx", "mlx_lm"))


def _refuse_no_mlx(machine: Machine, device: str) -> None:
    if device == "cuda":
        raise ConfigError(
            _("MLX does not run on CUDA, only on Apple GPUs and on the CPU."),
            where="--engine mlx",
            found=device,
            fix=_("Remove --engine, or use --device cpu."),
        )
    if not has_mlx(machine):
        raise ConfigError(
            _("MLX is not installed."), where="--engine mlx", fix=_("Install it: {command}").format(command=MLX_INSTALL)
        )


def _refuse_several(config: TrainConfig) -> None:
    if (config.processes or 1) > 1:
        raise ConfigError(
            _("MLX supports only one training process."),
            where="--engine mlx",
            found=f"--processes {config.processes}",
            fix=_("Remove --processes, or use --engine torch."),
        )


def precisions(config: TrainConfig, machine: Machine, device: str, engine: str = "torch") -> list[str]:
    """Return the precisions to try, the preferred one first.

    On a CPU, bf16 is the storage format of the weights; arithmetic is in fp32. Raise ConfigError for fp16 on a CPU, which
    has no fast fp16 arithmetic, and for fp16 with MLX.
    """
    if engine == "mlx":
        return _mlx_precisions(config, device)
    if device == "cpu":
        if config.precision == "fp16":
            raise ConfigError(
                _("This CPU has no fast {precision} arithmetic: training would be 10 to 40 times slower.").format(
                    precision=config.precision
                ),
                where="--precision",
                found=machine.chip,
                fix=_("Use --precision fp32."),
            )
        return ["fp32", "bf16"] if config.precision == "auto" else [config.precision]
    if config.precision != "auto":
        return [config.precision]
    return [_cuda_precision(machine)] if device == "cuda" else ["fp32", "bf16"]


def _mlx_precisions(config: TrainConfig, device: str) -> list[str]:
    """Return bf16 on Apple's GPU and fp32 on a CPU, where bf16 is emulated; or the requested precision.

    Raise ConfigError for fp16: it needs loss scaling, which the MLX engine does not have.
    """
    if config.precision == "fp16":
        raise ConfigError(
            _("The MLX engine does not train in float16: bfloat16 has a wider range and takes the same memory."),
            where="--precision",
            found=config.precision,
            fix=_("Use --precision bf16 or fp32."),
        )
    own = "fp32" if device == "cpu" else "bf16"
    return [own if config.precision == "auto" else config.precision]


def precision_choice(config: TrainConfig, device: str, precision: str, engine: str = "torch") -> Choice:
    """Return the chosen precision with its reason."""
    if config.precision != "auto":
        reason = _("✓ {precision}, as requested")
    elif engine == "mlx" and precision == "bf16":
        reason = _("✓ Using bfloat16 precision (half the memory; adapter and optimizer state stay in float32)")
    elif device == "mps" and precision == "fp32":
        reason = _("✓ Using float32 precision (most compatible on MPS)")
    elif device == "mps":
        reason = _("⚠️  float32 does not fit in memory: using bfloat16, which takes half as much")
    elif device == "cpu" and precision == "bf16":
        reason = _("⚠️  float32 does not fit in memory: weights are stored in bfloat16, computation is in float32")
    elif device == "cpu":
        reason = _("✓ Using float32 precision (fastest on most CPUs)")
    elif precision == "bf16":
        reason = _("✓ Using bfloat16 precision (supported by this GPU in hardware)")
    else:
        reason = _("✓ Using float16 precision with loss scaling (this GPU does not support bfloat16)")
    return Choice("precision", precision, reason.format(precision=precision))


def only_4bit_fits(device: str) -> Choice:
    """Return the choice of 4-bit base weights because nothing else fits. `device` is the engine: "mlx" or "torch".

    The user did not request quantization, and quantization changes the trained adapter: the reason is a warning.
    """
    how = _("MLX's own") if device == "mlx" else "NF4"
    reason = _("⚠️  4-bit base weights ({how}): nothing else fits in memory. To stop instead, add `--quantization none`")
    return Choice("quantization", "4bit", reason.format(how=how))


def choose_quantization(config: TrainConfig, device: str, engine: str = "torch") -> Choice:
    """Choose the quantization: the requested one, else 4-bit NF4 on CUDA and none elsewhere.

    Raise ConfigError for 8-bit with PyTorch on MPS, which has no kernel.
    """
    asked = config.quantization
    if device == "mps" and asked == "8bit" and engine == "torch":
        raise ConfigError(
            _("8-bit matrix multiplication is not available on MPS."),
            where="--quantization",
            found=asked,
            fix=_("Use --quantization none, or try --quantization 4bit."),
        )
    if asked == "auto":
        return _automatic_quantization(device, engine)
    if asked == "none":
        reason = _("✓ Base weights not quantized, as requested")
    elif engine == "mlx":
        reason = _("✓ {bits} base weights (MLX, groups of 64; embedding and output head not quantized), as requested")
    elif device == "mps":
        reason = _("⚠️  4-bit on MPS, as requested: trying bitsandbytes' MPS operators (slower, saves memory)")
    elif device == "cpu":
        reason = _("✓ {bits} on the CPU, as requested: a third of the memory, nearly twice the time")
    else:
        reason = _("✓ {bits} base weights (bitsandbytes), as requested")
    return Choice("quantization", asked, reason.format(bits=asked.replace("bit", "-bit")))


def choose_optimizer(config: TrainConfig, device: str, engine: str = "torch") -> Choice:
    """Choose the optimizer: the requested one, else paged_adamw_8bit on CUDA and AdamW elsewhere.

    Raise ConfigError for paged_adamw_8bit on MPS or in MLX, which have no kernel.
    """
    if config.optimizer == "paged_adamw_8bit" and (device == "mps" or engine == "mlx"):
        raise ConfigError(
            _("8-bit optimizers are not available on MPS or in MLX: bitsandbytes has no kernels for them."),
            where="--optimizer",
            found=config.optimizer,
            fix=_("Use --optimizer adamw; for an adapter it takes little memory."),
        )
    if config.optimizer != "auto":
        return Choice(
            "optimizer", config.optimizer, _("✓ {optimizer}, as requested").format(optimizer=config.optimizer)
        )
    if device == "cuda":
        return Choice("optimizer", "paged_adamw_8bit", _("✓ AdamW with paged 8-bit optimizer state (bitsandbytes)"))
    return Choice("optimizer", "adamw", _("✓ AdamW, optimizer state in float32"))


def _automatic_quantization(device: str, engine: str) -> Choice:
    if engine == "mlx":
        text = _(
            "✓ Base weights not quantized (`--quantization 4bit` uses MLX's own 4-bit: a third "
            "to half of bfloat16's memory)"
        )
        return Choice("quantization", "none", text)
    if device == "cuda":
        return Choice("quantization", "4bit", _("✓ 4-bit NF4 base weights (bitsandbytes)"))
    if device == "mps":
        text = _("⚠️  4-bit is off with PyTorch's MPS (`--quantization 4bit` tries bitsandbytes' MPS operators)")
        return Choice("quantization", "none", text)
    text = _("✓ Base weights not quantized (`--quantization 4bit` saves memory at a small cost in quality)")
    return Choice("quantization", "none", text)


def _cuda_precision(machine: Machine) -> str:
    gpu = machine.gpu("cuda")
    return "bf16" if gpu and gpu.compute_capability and gpu.compute_capability >= 8.0 else "fp16"


def _gpu_text(gpu: Gpu) -> str:
    return aside(gpu.name, bytes_text(gpu.memory_bytes))


def _found(machine: Machine) -> str:
    gpus = [_gpu_text(gpu) for gpu in machine.gpus] or [_("no GPU")]
    torch = f"PyTorch {machine.torch_version or '?'} (CUDA {machine.torch_cuda or '-'})"
    return clauses([machine.chip, *gpus, torch])


def _cuda_fix(gpu: Gpu | None) -> str:
    if gpu is None:
        return _("Remove --device, or use --device cpu.")
    return _("Install a PyTorch build with CUDA (the installed one has none): https://pytorch.org/get-started")


def _cpu_reason(machine: Machine, unusable: Gpu | None) -> str:
    facts = {"chip": machine.chip, "cores": machine.cores}
    if unusable:
        text = _("⚠️  {gpu} found, but the installed PyTorch has no CUDA: training on the CPU ({chip}, cores: {cores})")
        return text.format(gpu=unusable.name, **facts)
    return _("✓ No GPU found: training on the CPU ({chip}, cores: {cores})").format(**facts)


def _refuse_wrong_mps(machine: Machine) -> None:
    if not machine.chip.startswith(("Apple M1", "Apple M2")) or machine.torch_version is None:
        return
    if tuple(int(part) for part in machine.torch_version.split(".")[:2]) < MPS_FIXED_VERSION:
        raise HardwareError(
            _("This PyTorch version multiplies large matrices wrongly on M1 and M2, without any error."),
            found=f"PyTorch {machine.torch_version}, {machine.chip}",
            fix=_("Run `pip install -U 'torch>=2.14'`, or use --device cpu."),
        )
