"""Weight files in mlx_lm's layout, written weight by weight from the model that the MLX engine fuses."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lorafit.errors import ExportError
from lorafit.exporters.certificate import Survival
from lorafit.exporters.merge import Delta, MergedTensor
from lorafit.exporters.weight_writer import Slot, WeightWriter, float_slot, shards, write_index
from lorafit.messages import _
from lorafit.progress import ProgressCallback

REPLACED = "dequantized.safetensors"  # in the export's folder while it is written
LEAST_SHARE = 0.99  # of the adapter's squared norm: rounding of float32 sums changes it less


def write_replaced(tensors: list[MergedTensor], path: Path, say: ProgressCallback) -> None:
    """Write the weights that the training saw in place of those in the base's files, if there are any, in float32."""
    found = {tensor.name: tensor for tensor in tensors if tensor.weight is not None}
    if not found:
        return
    with WeightWriter(path, [float_slot(name, "F32", one.header.shape) for name, one in found.items()]) as writer:
        for number, tensor in enumerate(found.values()):
            say(_("Dequantizing the base model: {share:.0%}").format(share=number / len(found)))
            assert tensor.weight is not None
            writer.write(np.ascontiguousarray(tensor.weight(), np.float32))


def write_weights(
    fused: Any, deltas: Mapping[str, Delta], folder: Path, say: ProgressCallback
) -> tuple[Survival, dict[str, str]]:
    """Write the tensors of `fused`. Return what is left of the adapter, and the types, by mlx_lm's names of the weights.

    Raises ExportError if a part of the adapter is not in them.
    """
    survival, types, total = Survival({}, {}), dict[str, str](), [0.0]

    def words() -> Iterator[Any]:
        for written in fused.tensors():
            if written.left is not None:
                survival.add(written.name, *written.left)
                types[written.name] = _type(fused.bits_of(written.name), fused.dtype_name)
                total[0] += written.left.size
            yield from written.parts

    files = shards(Slot(*place) for place in fused.places())
    size, done, parts = sum(slot.size for slots in files.values() for slot in slots), 0, words()
    for file, slots in files.items():
        with WeightWriter(folder / file, slots, "mlx") as writer:
            for slot in slots:
                say(_("Merging: {share:.0%}").format(share=done / max(size, 1)))
                writer.write(next(parts).reshape(-1))
                done += slot.size
    next(parts, None)  # so that the last weight is counted
    write_index(folder, files)
    _require_all(total[0], deltas)
    return survival, types


def _type(bits: int | None, dtype: str) -> str:
    """Return the name of a type in survival.STEP."""
    if bits is None:
        return dtype
    return "mlx8" if bits >= 8 else "mlx4"


def _require_all(found: float, deltas: Mapping[str, Delta]) -> None:
    """Raise ExportError if the squared norm of what was added is less than that of the adapter."""
    wanted = sum(d.scale**2 * float(np.sum((d.b.T @ d.b) * (d.a @ d.a.T))) for d in deltas.values())
    if found < LEAST_SHARE * wanted:
        raise ExportError(
            _("mlx_lm leaves out weights that the adapter changes."),
            found=f"{found / wanted:.1%}",
            fix=_("Export with --to merged instead."),
        )
