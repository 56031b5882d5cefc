"""How do an optimizer's moments lie on the disk? As fp32 under the adapter's names, so that any engine takes them over."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lorafit.errors import AdapterError
from lorafit.messages import _

FILE = "optimizer.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's mean of gradients, and of their squares

Arrays = dict[str, NDArray[Any]]


def write_moments(
    folder: Path, moments: dict[str, Arrays], updates: float, kind: str, raw: Arrays | None = None
) -> None:
    """Write `moments` [moment][parameter], after how many updates, of which optimizer; `raw` states beside them."""
    tensors = {f"{name}.{key}": array for key in MOMENTS for name, array in moments[key].items()}
    tensors |= {**(raw or {}), "updates": np.asarray([updates], np.float32)}
    save_file(dict(sorted(tensors.items())), folder / FILE, {"optimizer": kind})


def read_moments(folder: Path, shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, Arrays], int, Arrays]:
    """The moments [moment][parameter] of parameters with `shapes`, the updates, and all arrays of the file by name.

    Raises AdapterError where they do not fit.
    """
    try:
        tensors = load_file(folder / FILE)
        moments = {key: {name: tensors[f"{name}.{key}"] for name in shapes} for key in MOMENTS}
        for key in MOMENTS:
            for name, shape in shapes.items():
                if moments[key][name].shape != shape:
                    raise ValueError(f"{name}: {moments[key][name].shape} != {shape}")
        return moments, int(tensors["updates"][0]), tensors
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise AdapterError(
            _("The optimizer's state does not fit this run."), where=folder / FILE, found=error
        ) from error
