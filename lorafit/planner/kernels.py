"""Optional packages with fused CUDA kernels for layers without attention: without them, PyTorch computes these slowly."""

from importlib.util import find_spec

from lorafit.hardware.detect import Machine
from lorafit.messages import _
from lorafit.models.spec import ModelSpec
from lorafit.planner.plan import Choice

MODULES = {"flash-linear-attention": "fla", "causal-conv1d": "causal_conv1d", "mamba-ssm": "mamba_ssm"}


def kernel_choices(spec: ModelSpec, machine: Machine, device: str) -> list[Choice]:
    """Return a line with the packages to install on a CUDA device; an empty list if none is missing or none would help.

    On a machine that is only named, all count as missing.
    """
    if device != "cuda":
        return []
    missing = [name for name in spec.kernels if machine.described or find_spec(MODULES[name]) is None]
    if not missing:
        return []
    text = _("`{command}` brings fused kernels for this model's layers without attention: faster, with less memory")
    return [Choice("kernels", _("optional"), text.format(command=f"pip install {' '.join(missing)}"))]
