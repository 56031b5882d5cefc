"""On which device, in which numbers, with which optimizer? Each a Choice whose reason is a whole line for the user."""

from importlib.util import find_spec

from lorafit import registry
from lorafit.config import TrainConfig
from lorafit.errors import ConfigError, HardwareError
from lorafit.hardware import Gpu, Machine
from lorafit.messages import _
from lorafit.plan.plan import Choice
from lorafit.units import bytes_text

MPS_RIGHT_SINCE = (2, 14)  # older PyTorch multiplies wrongly, without a word, on M1 and M2 where a side is over 32767


def choose_device(config: TrainConfig, machine: Machine) -> Choice:
    """CUDA, else MPS, else the CPU; or what was asked. Raises HardwareError where that is not there."""
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
        _refuse_wrong_mps(machine)
        return Choice("device", "mps", _("✓ Apple Silicon (MPS) found"))
    return Choice("device", "cpu", _cpu_reason(machine, cuda))


def choose_engine(config: TrainConfig, machine: Machine, device: str) -> Choice:
    """MLX on Apple's GPU where it is installed (or the machine is only described), else PyTorch; or what was asked."""
    asked = str(getattr(config, "engine", "auto"))
    if asked != "auto":
        return Choice("engine", asked, _("as asked"))
    if device == "mps" and "mlx" in registry.ENGINES and (machine.described or find_spec("mlx")):
        return Choice("engine", "mlx", _("the fastest on Apple Silicon"))
    return Choice("engine", "torch", _("PyTorch"))


def precisions(config: TrainConfig, machine: Machine, device: str, engine: str = "torch") -> list[str]:
    """Number formats to try, the best first. Raises ConfigError for one that the processor would only imitate.

    On a CPU bfloat16 is how weights are stored; arithmetic is in float32.
    """
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
    if engine == "mlx":
        return ["bf16"]
    return [_cuda_precision(machine)] if device == "cuda" else ["fp32", "bf16"]


def precision_choice(config: TrainConfig, device: str, precision: str) -> Choice:
    """The chosen precision in words."""
    if config.precision != "auto":
        reason = _("✓ {precision}, as asked")
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
    """Where nothing else fits, the base is quantised without being asked; it changes what is learned, so it is said."""
    how = _("MLX's own") if device == "mlx" else "NF4"
    reason = _("⚠️  4-bit base weights ({how}): nothing else fits in memory (`--quantization none` refuses instead)")
    return Choice("quantization", "4bit", reason.format(how=how))


def choose_quantization(config: TrainConfig, device: str, engine: str = "torch") -> Choice:
    """4-bit NF4 on CUDA, none elsewhere; or what was asked. Raises ConfigError where there is no kernel."""
    asked = config.quantization
    if device == "mps" and asked == "8bit" and engine == "torch":
        raise ConfigError(
            _("There is no 8-bit matrix product on MPS."),
            where="--quantization",
            found=asked,
            fix=_("Use --quantization none, or try --quantization 4bit."),
        )
    if asked == "auto":
        return _automatic_quantization(device)
    if asked == "none":
        reason = _("✓ Base weights not quantised, as asked")
    elif device == "mps":
        reason = _("⚠️  4-bit on MPS, as asked: bitsandbytes' MPS operators are tried (slower, saves memory)")
    elif device == "cpu":
        reason = _("✓ {bits} on the CPU, as asked: a third of the memory, nearly twice the time")
    else:
        reason = _("✓ {bits} base weights (bitsandbytes), as asked")
    return Choice("quantization", asked, reason.format(bits=asked.replace("bit", "-bit")))


def choose_optimizer(config: TrainConfig, device: str) -> Choice:
    """paged_adamw_8bit on CUDA, AdamW elsewhere; or what was asked. Raises ConfigError where there is no kernel."""
    if device == "mps" and config.optimizer == "paged_adamw_8bit":
        raise ConfigError(
            _("There is no 8-bit optimizer on MPS: bitsandbytes has no kernel for it."),
            where="--optimizer",
            found=config.optimizer,
            fix=_("Use --optimizer adamw; for an adapter it costs little."),
        )
    if config.optimizer != "auto":
        return Choice("optimizer", config.optimizer, _("✓ {optimizer}, as asked").format(optimizer=config.optimizer))
    if device == "cuda":
        return Choice("optimizer", "paged_adamw_8bit", _("✓ AdamW with paged 8-bit moments (bitsandbytes)"))
    return Choice("optimizer", "adamw", _("✓ AdamW, fused, moments in float32"))


def _automatic_quantization(device: str) -> Choice:
    if device == "cuda":
        return Choice("quantization", "4bit", _("✓ 4-bit NF4 base weights (bitsandbytes)"))
    if device == "mps":
        off = _("⚠️  macOS does not support 4-bit quantization: disabled automatically")
        today = _("    (`--quantization 4bit` tries bitsandbytes' MPS operators)")
        return Choice("quantization", "none", f"{off}\n{today}")
    return Choice("quantization", "none", _("✓ Base weights not quantised: on a CPU that would nearly double the time"))


def _cuda_precision(machine: Machine) -> str:
    gpu = machine.gpu("cuda")
    return "bf16" if gpu and gpu.compute_capability and gpu.compute_capability >= 8.0 else "fp16"


def _gpu_text(gpu: Gpu) -> str:
    return f"{gpu.name}, {bytes_text(gpu.memory_bytes)}"


def _found(machine: Machine) -> str:
    gpus = "; ".join(_gpu_text(gpu) for gpu in machine.gpus) or _("no GPU")
    torch = f"PyTorch {machine.torch_version or '?'} (CUDA {machine.torch_cuda or '-'})"
    return f"{machine.chip}; {gpus}; {torch}"


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
    if tuple(int(part) for part in machine.torch_version.split(".")[:2]) < MPS_RIGHT_SINCE:
        raise HardwareError(
            _("This PyTorch multiplies large matrices wrongly on M1 and M2, without a word."),
            found=f"PyTorch {machine.torch_version}, {machine.chip}",
            fix=_("Run `pip install -U 'torch>=2.14'`, or give --device cpu."),
        )
