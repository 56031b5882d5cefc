"""Safetensors files, written tensor by tensor: a header from the shapes alone, then the data."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from lorafit.models.weight_files import INDEX, WEIGHTS

SHARD_BYTES = 5_000_000_000  # a larger model is written as several files
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


class Slot(NamedTuple):
    """The place of a tensor in a file: its name, type, shape and size in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int


def float_slot(name: str, dtype: str, shape: tuple[int, ...]) -> Slot:
    """Return the place of a tensor of a type in BYTES."""
    return Slot(name, dtype, shape, BYTES[dtype] * prod(shape))


def shards(slots: Iterable[Slot]) -> dict[str, list[Slot]]:
    """Return the files of the tensors, in their order: one, or several of at most SHARD_BYTES."""
    groups: list[list[Slot]] = [[]]
    size = 0
    for slot in slots:
        if groups[-1] and size + slot.size > SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(slot)
        size += slot.size
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, 1)}


def write_index(folder: Path, files: dict[str, list[Slot]]) -> None:
    """Write model.safetensors.index.json if there are several files."""
    if len(files) == 1:
        return
    names = {slot.name: file for file, slots in files.items() for slot in slots}
    total = sum(slot.size for slots in files.values() for slot in slots)
    index = {"metadata": {"total_size": total}, "weight_map": names}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")


@dataclass
class WeightWriter:
    """One safetensors file at `path` for `slots`, whose data are written in their order by write().

    `form` is the library whose layout the tensors have, as safetensors calls it.
    """

    path: Path
    slots: list[Slot]
    form: str = "pt"

    def __enter__(self) -> "WeightWriter":
        self._file = self.path.open("wb", buffering=0)
        facts: dict[str, Any] = {"__metadata__": {"format": self.form}}
        end = 0
        for slot in self.slots:
            facts[slot.name] = {"dtype": slot.dtype, "shape": list(slot.shape), "data_offsets": [end, end + slot.size]}
            end += slot.size
        head = json.dumps(facts, separators=(",", ":")).encode()
        head += b" " * (-len(head) % 8)
        self.write(len(head).to_bytes(8, "little") + head)
        return self

    def write(self, data: Any) -> None:
        """Append `data`, an object with the buffer protocol."""
        view = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")
        while view:
            view = view[self._file.write(view) or 0 :]

    def __exit__(self, *_error: object) -> None:
        self._file.close()
