"""The gate on what rounding leaves of an adapter's delta. Limits, and why these are enough.

A weight that lies on the grid of its type moves only if its delta exceeds half a step of the grid: 2^-9 of the weight for
bf16, 2^-12 for fp16. A short training moves some tensors less than that. Their slope is small, and yet nothing is wrong
with the file. So a single tensor is refused only if its delta is larger than a step of the grid, which rounding cannot
take away. That most tensors lost most of their delta is refused in any case.
"""

from collections.abc import Iterator
from statistics import median

from lorafit.errors import ExportError
from lorafit.exporters.certificate import Survival
from lorafit.messages import _, listed

LEAST_MEDIAN, LEAST_SLOPE = 0.5, 0.1
MOST_SLOPE = 1.5  # rounding cannot add to a delta that is larger than a step of the grid
STEP = {"BF16": 2.0**-7, "F16": 2.0**-10, "F32": 2.0**-23, "F64": 2.0**-52}  # of the grid, relative to the weight
SHOWN = 3


def require_survival(found: Survival, dtypes: dict[str, str]) -> None:
    """Raise ExportError if the delta was lost. `dtypes` are the types of the exported tensors by name."""
    fix = _("Export in float32, which keeps every delta: `--dtype fp32`. If that fails too, train longer.")
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
