"""What each adapted layer makes of one fixed vector: in the live model, and in the tensors that an export wrote.

A layer without its delta, a wrong scale, or a base other than that of the training shows here, however little it changes
the answers. The rounding of a tensor does not show: the products are of W and of the delta before it.
Letters: O outputs, I inputs.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lorafit import registry
from lorafit.errors import ExportError
from lorafit.exporters.merge import Delta
from lorafit.exporters.rounding import Float32
from lorafit.messages import _, listed

# Largest relative difference of W x, and of the delta's. float32 sums in another order differ by less than a tenth of it.
MOST, MOST_DELTA = 1e-3, 2e-3
# With 4 bits, a training in bf16 rounds a few weights otherwise than the live model in float32: by 1.5%. The base before
# it was quantized differs by 9%.
MOST_OF_4_BITS = 0.04
SHOWN = 3
_NONE = np.zeros(0, np.float32)


class Product(NamedTuple):
    """W x and delta x, both [O]."""

    weight: Float32
    delta: Float32


def probe_vector(inputs: int) -> Float32:
    """Return the vector x [I]."""
    return np.random.default_rng(inputs).standard_normal(inputs, np.float32)


def product(weight: Float32, delta: Float32) -> Product:
    """Return the products of rows of W and of the delta, both [O,I]."""
    x = probe_vector(delta.shape[-1])
    return Product(weight.reshape(delta.shape) @ x, delta @ x)


def add(found: dict[str, Product], name: str, rows: Product) -> None:
    """Append the products of the next rows of the tensor `name`."""
    before = found.get(name)
    found[name] = (
        rows if before is None else Product(*(np.concatenate(pair) for pair in zip(before, rows, strict=True)))
    )


def live_products(engine: Any) -> dict[str, Product]:
    """Return the products of the layers of an open engine with its adapter, by module."""
    layers: Callable[..., dict[str, tuple[NDArray[np.float32], ...]]] = registry.load(registry.LAYER_PRODUCTS)
    return {module: Product(*pair) for module, pair in layers(engine, probe_vector).items()}


def require_same_layers(
    found: Mapping[str, Product], live: Mapping[str, Product], names: Mapping[str, str], quantization: str
) -> None:
    """Raise ExportError unless the tensors of the export are the live layers.

    `found` are by the names in the base's files, `live` by module, and `names` from the second to the first.
    """
    most = MOST_OF_4_BITS if quantization == "4bit" else MOST
    _require_none(_differences(found, live, names, most))


def require_same_deltas(found: Mapping[str, Delta], live: Mapping[str, Product], names: Mapping[str, str]) -> None:
    """Raise ExportError unless the deltas of the export, by the names in the base's files, are those of the live layers."""
    products = {name: Product(_NONE, np.float32(delta.scale) * (delta.b @ (delta.a @ probe_vector(delta.a.shape[1]))))
                for name, delta in found.items()}  # fmt: skip
    _require_none(
        _differences(products, {module: Product(_NONE, one.delta) for module, one in live.items()}, names, MOST)
    )


def _require_none(differences: Iterator[str]) -> None:
    if wrong := list(differences):
        text = listed([*wrong[:SHOWN], *(["..."] if wrong[SHOWN:] else [])])
        raise ExportError(_("Layers of the export are not those of the trained model."), found=text,
                          fix=_("Please report it; `--to peft` exports the adapter."))  # fmt: skip


def _differences(
    found: Mapping[str, Product], live: Mapping[str, Product], names: Mapping[str, str], most: float
) -> Iterator[str]:
    for module, wanted in live.items():
        one = found.get(names.get(module, ""))
        if one is None:
            yield _("{layer}: without the adapter").format(layer=module)
            continue
        for off, limit, what in (
            (_distance(one.weight, wanted.weight), most, _("base")),
            (_distance(one.delta, wanted.delta), MOST_DELTA, _("adapter")),
        ):
            if not off <= limit:
                yield f"{module}: {what} {off:.1%}"


def _distance(found: Float32, wanted: Float32) -> float:
    """Return the distance relative to the norm of `wanted`; that of zeros to themselves is 0."""
    off = float(np.linalg.norm(found - wanted))
    return off / max(float(np.linalg.norm(wanted)), 1e-30) if off else 0.0
