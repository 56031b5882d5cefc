"""The gate on what rounding leaves of an adapter's delta. Limits, and why these are enough.

A weight that lies on the grid of its type moves only if its delta exceeds half a step of the grid: 2^-9 of the weight for
bf16, 2^-12 for fp16. A short training moves some tensors less than that. Their slope is small, and yet nothing is wrong
with the file. So a single tensor is refused only if its delta is larger than a step of the grid, which rounding cannot
take away. That most tensors lost most of their delta is refused in any case.

A step of a type with blocks is a part of the largest value in its block, about three times the usual value. Weights off
the grid keep a smaller delta in the mean, under noise. Weights that lie on the same grid lose it, whatever its size.
"""

from collections.abc import Iterator
from statistics import median

from lorafit.errors import ExportError
from lorafit.exporters.certificate import Survival
from lorafit.messages import _, listed

LEAST_MEDIAN, LEAST_SLOPE = 0.5, 0.1
MOST_SLOPE = 1.5  # rounding cannot add to a delta that is larger than a step of the grid
# Of the grid, relative to the weight.
STEP = {"BF16": 2.0**-7, "F16": 2.0**-10, "F32": 2.0**-23, "F64": 2.0**-52, "Q8_0": 3 / 127, "Q6_K": 3 / 31,
        "Q5_0": 3 / 15, "Q5_1": 3 / 15, "Q5_K": 3 / 15, "Q4_0": 3 / 7, "Q4_K": 3 / 7, "mlx8": 3 / 127, "mlx4": 3 / 7}  # fmt: skip
SHOWN = 3


def require_survival(found: Survival, dtypes: dict[str, str], fix: str) -> None:
    """Raise ExportError if the delta was lost. `dtypes` are the types of the exported tensors by name."""
    if found.slopes and median(found.slopes.values()) < LEAST_MEDIAN:
        text = _("median of what is left over {count} tensors: {share:.0%}")
        raise ExportError(
            _("Rounding would take away most of what the adapter changes."),
            found=text.format(count=len(found.slopes), share=median(found.slopes.values())),
            fix=fix,
        )
    if lost := list(_lost(found, dtypes)):
        raise ExportError(
            _("The adapter's change is missing from some tensors of the export."), found=listed(lost[:SHOWN]), fix=fix
        )


def _lost(found: Survival, dtypes: dict[str, str]) -> Iterator[str]:
    for name, slope in found.slopes.items():
        if found.reach[name] > STEP[dtypes[name]] and not LEAST_SLOPE <= slope <= MOST_SLOPE:
            yield f"{name}: {slope:.2f}"
