"""The names of a model's linear layers in mlx_lm's model, by their names in adapters, which are those of transformers."""

from collections.abc import Iterable
from pathlib import Path

from mlx import nn

from lorafit.engines.base import Setup
from lorafit.engines.mlx import device
from lorafit.engines.mlx.load import load_base
from lorafit.errors import AdapterError, ModelError
from lorafit.messages import _, listed

SHOWN = 3  # names in an error


def layer_names(folder: Path, modules: Iterable[str], trust_remote_code: bool = False) -> dict[str, str]:
    """Return mlx_lm's name of each of `modules`, layers of the base model in `folder`. No weight is read.

    Raises ModelError for a type that mlx_lm does not know or computes otherwise, and AdapterError for layers that mlx_lm
    has in another form.
    """
    device.use_device("cpu", "fp32")
    fix = _("Export the merged model instead: `--to mlx` without --adapter_only.")
    try:
        base = load_base(Setup(folder, str(folder), "cpu", "fp32", trust_remote_code=trust_remote_code))
    except ModelError as error:
        error.fix = fix
        raise
    known = {f"{base.prefix}.layers.{number}.{name}": f"{base.path}model.layers.{number}.{name}"
             for number, layer in enumerate(getattr(base.model.model, "layers", ())) for name, module in layer.named_modules()
             if isinstance(module, nn.Linear | nn.QuantizedLinear)}  # fmt: skip
    if absent := sorted(module for module in modules if module not in known):
        raise AdapterError(
            _("mlx_lm computes some layers of this adapter in another form."),
            where=folder,
            found=listed([*absent[:SHOWN], *(["..."] if absent[SHOWN:] else [])]),
            fix=fix,
        )
    return {module: known[module] for module in modules}
