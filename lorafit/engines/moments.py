"""Optimizer state on disk: fp32 moments under the adapter's tensor names, so that any engine can resume from it."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lorafit.atomic import read_errors
from lorafit.errors import AdapterError
from lorafit.messages import _

FILE = "optimizer.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's running means of the gradients and of their squares

Arrays = dict[str, NDArray[Any]]


def write_moments(
    folder: Path, moments: dict[str, Arrays], updates: float, kind: str, raw: Arrays | None = None
) -> None:
    """Write `moments` [moment][parameter] after `updates` updates of optimizer `kind`.

    `raw` holds more arrays for the same file, such as the unconverted 8-bit states.
    """
    tensors = {f"{name}.{key}": array for key in MOMENTS for name, array in moments[key].items()}
    tensors |= {**(raw or {}), "updates": np.asarray([updates], np.float32)}
    save_file(dict(sorted(tensors.items())), folder / FILE, {"optimizer": kind})


def read_moments(folder: Path, shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, Arrays], int, Arrays]:
    """Return the moments [moment][parameter], the number of updates, and all arrays of the file by name.

    Raise AdapterError if the file does not hold moments for parameters with `shapes`.
    """
    try:
        with read_errors(folder / FILE), (folder / FILE).open("rb"):
            tensors = load_file(folder / FILE)
        moments = {key: {name: tensors[f"{name}.{key}"] for name in shapes} for key in MOMENTS}
        for key in MOMENTS:
            for name, shape in shapes.items():
                if moments[key][name].shape != shape:
                    raise ValueError(f"{name}: {moments[key][name].shape} != {shape}")
        return moments, int(tensors["updates"][0]), tensors
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise AdapterError(
            _("The optimizer state does not match this run."), where=folder / FILE, found=error
        ) from error
