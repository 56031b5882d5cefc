"""Whether an adapter fits a base model and a training, and the errors if it does not."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lorafit.errors import AdapterError
from lorafit.messages import _, listed
from lorafit.models.lora_targets import SHOWN, place_in_layers
from lorafit.models.spec import ModelSpec
from lorafit.models.text_tensors import LAYER
from lorafit.run_folders.adapter import AdapterConfig, lora_names, modules_of, read_adapter


def check_shapes(folder: Path, spec: ModelSpec) -> None:
    """Raise AdapterError if the adapter in `folder` does not fit a base model `spec`, before the base model is loaded.

    The engine checks modules that the base model's files do not name: some models rename modules when loaded.
    """
    config, tensors = read_adapter(folder)
    layers = max((int(part[3]) for name in tensors if (part := LAYER.search(name))), default=-1) + 1
    if layers > spec.layers:
        found = _("layers in the adapter: {theirs}, in the model: {ours}").format(theirs=layers, ours=spec.layers)
        raise wrong_base_error(folder, config.base_model, found)
    sizes = {place_in_layers(linear.name): (linear.in_features, linear.out_features) for linear in spec.linears}
    for module in modules_of(tensors):
        if (size := sizes.get(place_in_layers(module))) is None:
            continue
        a, b = (tensors[name] for name in lora_names(module))
        if (a.shape[1], b.shape[0]) != size:
            found = _("{module}: {theirs} in the adapter, {ours} in the model").format(
                module=module, theirs=f"{a.shape[1]} -> {b.shape[0]}", ours="{} -> {}".format(*size)
            )
            raise wrong_base_error(folder, config.base_model, found)


def read_matching_adapter(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
    """Return the tensors of the adapter in `folder`. Raise AdapterError for other names or shapes."""
    config, tensors = read_adapter(folder)
    if tensors.keys() > shapes.keys():
        raise left_out_error(folder, modules_of(tensors.keys() - shapes.keys()))
    if differing := sorted(tensors.keys() ^ shapes.keys()):
        raise wrong_layers_error(folder, config, listed(differing[:2]))
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise wrong_base_error(folder, config.base_model, f"{name}: {tensors[name].shape} != {shape}")
    return tensors


def wrong_base_error(folder: Path, trained_on: str | None, found: str) -> AdapterError:
    """Return the error for an adapter on a base model that it was not trained on."""
    return AdapterError(
        _("This adapter was trained on a different base model: {name}.").format(name=trained_on or "?"),
        where=folder,
        found=found,
        fix=_("Use that base model (training: --model_name; chat: --base_model, or omit it), or another adapter."),
    )


def wrong_layers_error(folder: Path, config: AdapterConfig, found: str) -> AdapterError:
    """Return the error for an adapter on more or fewer layers than are trained."""
    targets = ",".join(config.target_modules)
    return AdapterError(
        _("This adapter covers different layers than this run trains."),
        where=folder,
        found=found,
        fix=_("Use the adapter's own settings: {flags} (base model: {name}), or use another adapter.").format(
            flags=f"--lora_targets {targets}", name=config.base_model or "?"
        ),
    )


def left_out_error(folder: Path, modules: list[str]) -> AdapterError:
    """Return the error for an adapter that also has `modules` that no training adapts, such as routers."""
    return AdapterError(
        _("This adapter has layers that training leaves out, for example routers."),
        where=folder,
        found=listed(sorted({place_in_layers(module).lstrip("0123456789.") for module in modules})[:SHOWN]),
        fix=_("Train a new adapter from the base model. `lorafit chat` still uses this one."),
    )
