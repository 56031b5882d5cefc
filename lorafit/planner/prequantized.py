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
        return Choice("engine", "mlx", _("✓ MLX: the base is quantised for it"))
    fix = _(
        "Give `--engine mlx` (where it is not installed: {command}). For PyTorch take the model as it was before, "
        "with `--quantization 4bit` if it is to be small."
    )
    raise ModelError(
        _("The base model is quantised for MLX; PyTorch cannot read that."),
        where=config.model_name,
        found=_("{bits}-bit").format(bits=packed.bits),
        fix=fix.format(command=device_precision.MLX_INSTALL),
    )


def choose_quantization(config: TrainConfig, packed: Packed) -> Choice:
    """Choose the bits of the files. Raise ModelError if other bits, or none, are requested."""
    value = f"{packed.bits}bit"
    if config.quantization not in ("auto", value):
        raise ModelError(
            _("The base model is quantised already, in other bits than are asked for."),
            where=config.model_name,
            found=_("{bits}-bit, asked: {asked}").format(bits=packed.bits, asked=config.quantization),
            fix=_("Leave --quantization out, or take the model as it was before."),
        )
    return Choice(
        "quantization", value, _("✓ {bits}-bit base weights, as their files have them").format(bits=packed.bits)
    )
