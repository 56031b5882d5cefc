"""The curves of a run as an image file, drawn by matplotlib, which is an optional dependency."""

import importlib
import io
from pathlib import Path
from typing import Any

from lorafit.errors import ConfigError
from lorafit.messages import _, listed
from lorafit.paths import check_for_user, is_stream, write_for_user
from lorafit.run_folders import history
from lorafit.run_folders.history import Record

# Names of quantities, not translated: matplotlib's default font has no Chinese characters.
PANELS = (("loss", "valid_loss"), ("lr",), ("tokens/s",))
FLAG = "--plot"


def check_plot(path: Path) -> None:
    """Raise ConfigError if matplotlib is not installed or cannot write files of this type, and DiskError."""
    try:
        known = importlib.import_module("matplotlib.figure").Figure().canvas.get_supported_filetypes()
    except ModuleNotFoundError:
        raise ConfigError(
            _("Drawing curves needs matplotlib, which is not installed."),
            where=f"{FLAG} {path}",
            fix=_("Install it: {command}").format(command="pip install matplotlib"),
        ) from None
    if _format(path) not in known:
        raise ConfigError(
            _("Unsupported image format."),
            where=f"{FLAG} {path}",
            found=path.suffix or path.name,
            fix=_("Use one of these formats: {names}.").format(names=listed(sorted(known))),
        )
    check_for_user(path, FLAG)


def _format(path: Path) -> str:
    """Return the image format by the file's suffix; a device or pipe without a suffix gets PNG."""
    return path.suffix.lstrip(".").lower() or ("png" if is_stream(path) else "")


def write_plot(record: Record, path: Path) -> None:
    """Draw the curves of a run over its steps and save the image as `path`. Raise DiskError."""
    curves = history.curves(record)
    panels = [[name for name in panel if name in curves] for panel in PANELS]
    panels = [panel for panel in panels if panel] or [[]]
    figure: Any = importlib.import_module("matplotlib.figure").Figure((8, 2.6 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for panel, axis in zip(panels, axes, strict=True):
        for name in panel:
            steps, values = zip(*curves[name], strict=True)
            axis.plot(steps, values, label=name, marker="o" if len(steps) <= 30 else None, markersize=3)
        axis.set_ylabel(" / ".join(panel))
        axis.grid(alpha=0.3)
        if len(panel) > 1:
            axis.legend()
    axes[-1].set_xlabel("step")
    figure.suptitle(record.info.name, fontsize=10)
    image = io.BytesIO()
    figure.savefig(image, dpi=150, format=_format(path))
    write_for_user(path, image.getvalue(), FLAG)
