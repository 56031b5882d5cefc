"""Choices of device, engine, precision, quantization and optimizer.

Each is a `Choice` whose reason is a complete line for the user.
"""

from importlib.util import find_spec

from lorafit.config import TrainConfig
from lorafit.errors import ConfigError, HardwareError
from lorafit.hardware.catalogue.nvidia import OLDER_BUILD, OLDEST_CAPABILITY
from lorafit.hardware.detect import Gpu, Machine
from lorafit.messages import _, clauses, joined, listed
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
            "device", "cpu", _("✓ CPU, as asked: {chip}, {cores} cores").format(chip=machine.chip, cores=machine.cores)
        )
    if config.device == "cuda" and (cuda is None or machine.torch_cuda is None):
        raise HardwareError(_("There is no CUDA GPU that PyTorch can use."), found=_found(machine), fix=_cuda_fix(cuda))
    if config.device == "mps" and mps is None:
        raise HardwareError(
            _("There is no Apple GPU (MPS) here."),
            found=_found(machine),
            fix=_("Leave --device out, or give --device cpu."),
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
        "⚠️  {gpu}: PyTorch's current CUDA builds begin with Turing; `{command}` still knows it, or take a T4 or L4"
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
        return Choice("engine", "mlx", _("✓ MLX, as asked"))
    if config.engine == "torch":
        return Choice("engine", "torch", _("✓ PyTorch, as asked"))
    if device == "mps" and has_mlx(machine) and (config.processes or 1) == 1:
        return Choice("engine", "mlx", _("✓ MLX: the fastest on Apple Silicon (`--engine torch` takes PyTorch's MPS)"))
    if device == "mps" and not has_mlx(machine):
        text = _("⚠️  MLX, the fastest on Apple Silicon, is not installed ({command}): PyTorch's MPS is used")
        return Choice("engine", "torch", text.format(command=MLX_INSTALL))
    return Choice("engine", "torch", _("✓ PyTorch"))


def has_mlx(machine: Machine) -> bool:
    """Return whether MLX is available: installed, or assumed because the machine is described by name."""
    return machine.described or all(find_spec(name) is not None for name in ("mlx", "mlx_lm"))


def _refuse_no_mlx(machine: Machine, device: str) -> None:
    if device == "cuda":
        raise ConfigError(
            _("MLX computes on Apple's GPU, or on the CPU."),
            where="--engine mlx",
            found=device,
            fix=_("Leave --engine out, or give --device cpu."),
        )
    if not has_mlx(machine):
        raise ConfigError(
            _("MLX is not installed."), where="--engine mlx", fix=_("Install it: {command}").format(command=MLX_INSTALL)
        )


def _refuse_several(config: TrainConfig) -> None:
    if (config.processes or 1) > 1:
        raise ConfigError(
            _("With MLX one process trains alone."),
            where="--engine mlx",
            found=f"--processes {config.processes}",
            fix=_("Leave --processes out, or give --engine torch."),
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
                _("This processor does not compute in {precision}: it would be 10 to 40 times slower.").format(
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
            _("With MLX nothing is trained in float16: it has the range of bfloat16 for the same memory."),
            where="--precision",
            found=config.precision,
            fix=_("Use --precision bf16 or fp32."),
        )
    own = "fp32" if device == "cpu" else "bf16"
    return [own if config.precision == "auto" else config.precision]


def precision_choice(config: TrainConfig, device: str, precision: str, engine: str = "torch") -> Choice:
    """Return the chosen precision with its reason."""
    if config.precision != "auto":
        reason = _("✓ {precision}, as asked")
    elif engine == "mlx" and precision == "bf16":
        reason = _("✓ Using bfloat16 precision (half the memory; adapter and moments stay in float32)")
    elif device == "mps" and precision == "fp32":
        reason = _("✓ Using float32 precision (most compatible on MPS)")
    elif device == "mps":
        reason = _("⚠️  float32 does not fit in memory: using bfloat16, which takes half")
    elif device == "cpu" and precision == "bf16":
        reason = _("⚠️  float32 does not fit in memory: weights are stored in bfloat16, arithmetic is in float32")
    elif device == "cpu":
        reason = _("✓ Using float32 precision (fastest on most processors)")
    elif precision == "bf16":
        reason = _("✓ Using bfloat16 precision (this GPU computes it in hardware)")
    else:
        reason = _("✓ Using float16 precision with loss scaling (this GPU has no bfloat16)")
    return Choice("precision", precision, reason.format(precision=precision))


def only_4bit_fits(device: str) -> Choice:
    """Return the choice of 4-bit base weights because nothing else fits. `device` is the engine: "mlx" or "torch".

    The user did not request quantization, and quantization changes the trained adapter: the reason is a warning.
    """
    how = _("MLX's own") if device == "mlx" else "NF4"
    reason = _("⚠️  4-bit base weights ({how}): nothing else fits in memory (`--quantization none` refuses instead)")
    return Choice("quantization", "4bit", reason.format(how=how))


def choose_quantization(config: TrainConfig, device: str, engine: str = "torch") -> Choice:
    """Choose the quantization: the requested one, else 4-bit NF4 on CUDA and none elsewhere.

    Raise ConfigError for 8-bit with PyTorch on MPS, which has no kernel.
    """
    asked = config.quantization
    if device == "mps" and asked == "8bit" and engine == "torch":
        raise ConfigError(
            _("There is no 8-bit matrix product on MPS."),
            where="--quantization",
            found=asked,
            fix=_("Use --quantization none, or try --quantization 4bit."),
        )
    if asked == "auto":
        return _automatic_quantization(device, engine)
    if asked == "none":
        reason = _("✓ Base weights not quantised, as asked")
    elif engine == "mlx":
        reason = _("✓ {bits} base weights (MLX, groups of 64; embedding and head stay), as asked")
    elif device == "mps":
        reason = _("⚠️  4-bit on MPS, as asked: bitsandbytes' MPS operators are tried (slower, saves memory)")
    elif device == "cpu":
        reason = _("✓ {bits} on the CPU, as asked: a third of the memory, nearly twice the time")
    else:
        reason = _("✓ {bits} base weights (bitsandbytes), as asked")
    return Choice("quantization", asked, reason.format(bits=asked.replace("bit", "-bit")))


def choose_optimizer(config: TrainConfig, device: str, engine: str = "torch") -> Choice:
    """Choose the optimizer: the requested one, else paged_adamw_8bit on CUDA and AdamW elsewhere.

    Raise ConfigError for paged_adamw_8bit on MPS or in MLX, which have no kernel.
    """
    if config.optimizer == "paged_adamw_8bit" and (device == "mps" or engine == "mlx"):
        raise ConfigError(
            _("There is no 8-bit optimizer on MPS or in MLX: bitsandbytes has no kernel for them."),
            where="--optimizer",
            found=config.optimizer,
            fix=_("Use --optimizer adamw; for an adapter it costs little."),
        )
    if config.optimizer != "auto":
        return Choice("optimizer", config.optimizer, _("✓ {optimizer}, as asked").format(optimizer=config.optimizer))
    if device == "cuda":
        return Choice("optimizer", "paged_adamw_8bit", _("✓ AdamW with paged 8-bit moments (bitsandbytes)"))
    return Choice("optimizer", "adamw", _("✓ AdamW, moments in float32"))


def _automatic_quantization(device: str, engine: str) -> Choice:
    if engine == "mlx":
        text = _(
            "✓ Base weights not quantised (`--quantization 4bit` takes MLX's own 4-bit: "
            "a third to a half of bfloat16's memory)"
        )
        return Choice("quantization", "none", text)
    if device == "cuda":
        return Choice("quantization", "4bit", _("✓ 4-bit NF4 base weights (bitsandbytes)"))
    if device == "mps":
        off = _("⚠️  macOS does not support 4-bit quantization: disabled automatically")
        today = _("    (`--quantization 4bit` tries bitsandbytes' MPS operators)")
        return Choice("quantization", "none", joined("\n", [off, today]))
    text = _("✓ Base weights not quantised (`--quantization 4bit` saves memory and costs a little of what is learned)")
    return Choice("quantization", "none", text)


def _cuda_precision(machine: Machine) -> str:
    gpu = machine.gpu("cuda")
    return "bf16" if gpu and gpu.compute_capability and gpu.compute_capability >= 8.0 else "fp16"


def _gpu_text(gpu: Gpu) -> str:
    return listed([gpu.name, bytes_text(gpu.memory_bytes)])


def _found(machine: Machine) -> str:
    gpus = [_gpu_text(gpu) for gpu in machine.gpus] or [_("no GPU")]
    torch = f"PyTorch {machine.torch_version or '?'} (CUDA {machine.torch_cuda or '-'})"
    return clauses([machine.chip, *gpus, torch])


def _cuda_fix(gpu: Gpu | None) -> str:
    if gpu is None:
        return _("Leave --device out, or give --device cpu.")
    return _("The installed PyTorch is made without CUDA: see https://pytorch.org/get-started for one with it.")


def _cpu_reason(machine: Machine, unusable: Gpu | None) -> str:
    facts = {"chip": machine.chip, "cores": machine.cores}
    if unusable:
        text = _(
            "⚠️  {gpu} found, but the installed PyTorch is made without CUDA: training on the CPU ({chip}, {cores} cores)"
        )
        return text.format(gpu=unusable.name, **facts)
    return _("✓ No GPU found: training on the CPU ({chip}, {cores} cores)").format(**facts)


def _refuse_wrong_mps(machine: Machine) -> None:
    if not machine.chip.startswith(("Apple M1", "Apple M2")) or machine.torch_version is None:
        return
    if tuple(int(part) for part in machine.torch_version.split(".")[:2]) < MPS_FIXED_VERSION:
        raise HardwareError(
            _("This PyTorch multiplies large matrices wrongly on M1 and M2, without a word."),
            found=f"PyTorch {machine.torch_version}, {machine.chip}",
            fix=_("Run `pip install -U 'torch>=2.14'`, or give --device cpu."),
        )
