"""Choices for a base model that mlx_lm quantized: the engine is MLX, and the bits are those of the files."""

from lorafit.config import TrainConfig
from lorafit.errors import ModelError
from lorafit.hardware.detect import Machine
from lorafit.messages import _
from lorafit.models.spec import Packed
from lorafit.planner import device_precision
from lorafit.planner.plan import Choice


def choose_engine(config: TrainConfig, machine: Machine, device: str, chosen: Choice, packed: Packed) -> Choice:
    """Choose MLX.

    Raise ModelError if MLX is not available, PyTorch is requested, several processes train, or the device is CUDA.
    """
    if chosen.value == "mlx":
        return chosen
    free = config.engine == "auto" and (config.processes or 1) == 1
    if free and device != "cuda" and device_precision.has_mlx(machine):
        return Choice("engine", "mlx", _("✓ MLX: the base model is quantized for it"))
    fix = _(
        "Use `--engine mlx` (if it is not installed: {command}). For PyTorch, use the "
        "unquantized model, with `--quantization 4bit` to save memory."
    )
    raise ModelError(
        _("The base model is quantized for MLX, which PyTorch cannot read."),
        where=config.model_name,
        found=_("{bits}-bit").format(bits=packed.bits),
        fix=fix.format(command=device_precision.MLX_INSTALL),
    )


def choose_quantization(config: TrainConfig, packed: Packed) -> Choice:
    """Choose the bits of the files. Raise ModelError if other bits, or none, are requested."""
    value = f"{packed.bits}bit"
    if config.quantization not in ("auto", value):
        raise ModelError(
            _("The base model is already quantized to a different number of bits."),
            where=config.model_name,
            found=_("{bits}-bit, requested: {asked}").format(bits=packed.bits, asked=config.quantization),
            fix=_("Remove --quantization, or use the unquantized model."),
        )
    return Choice(
        "quantization", value, _("✓ {bits}-bit base weights, as stored in the model files").format(bits=packed.bits)
    )
