"""Base weights, read from their files once, directly into the memory where they stay.

Layers that share their input (query, key and value; gate and up) lie end to end in one buffer, so that one matmul can
compute them all. transformers does the rest (renamed tensors, tied heads, buffers): it takes the tensors as a state
dict, and its modules become views of them.
"""

import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from lorafit.engines import allocator
from lorafit.models.weight_files import Header, read_headers, weight_files

FUSED_PROJECTIONS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
STORED = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
TOWER = re.compile(r"vision|visual|audio")
PIECE = 1 << 22  # elements read at once if their dtype is converted


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that stays in its file until `[...]` reads it; transformers treats it like a slice of a file.

    transformers' own slices are memory-mapped: during 4-bit quantization both forms of the whole base were resident.
    """

    file: Path
    header: Header

    def __getitem__(self, _all: Any) -> Tensor:
        allocator.trim()  # quantizing the previous tensor left holes in the heap
        place = torch.empty(self.header.shape, dtype=STORED[self.header.dtype])
        with self.file.open("rb", buffering=0) as stream:
            _read(stream, self.header, place)
        return place


def lazy_weights(folder: Path) -> dict[str, LazyTensor] | None:
    """Return all tensors of `folder` by name, not yet read; None if a file holds other types than floats."""
    files = _floats(folder)
    if files is None:
        return None
    return {header.name: LazyTensor(file, header) for file, found in files.items() for header in found}


def _floats(folder: Path) -> dict[Path, list[Header]] | None:
    """Return the tensor headers of each file; None if a file holds other types than floats."""
    files = {file: read_headers(file) for file in weight_files(folder)}
    return files if all(header.dtype in STORED for found in files.values() for header in found) else None


def read_weights(folder: Path, dtype: torch.dtype) -> dict[str, Tensor | LazyTensor] | None:
    """Read the tensors of `folder` by name, in `dtype`; return None if a file holds other types than floats.

    Tensors of vision and audio towers are not read: most models are loaded without these.
    """
    files = _floats(folder)
    if files is None:
        return None
    towers = {h.name: LazyTensor(file, h) for file, found in files.items() for h in found if TOWER.search(h.name)}
    files = {file: [h for h in found if h.name not in towers] for file, found in files.items()}
    headers = {header.name: header for found in files.values() for header in found}
    tensors = _allocate_tensors(headers, dtype)
    for file, found in files.items():
        with file.open("rb", buffering=0) as stream:
            for header in sorted(found, key=lambda header: header.start):
                _read(stream, header, tensors[header.name])
    return {**tensors, **towers}


def _allocate_tensors(headers: dict[str, Header], dtype: torch.dtype) -> dict[str, Tensor]:
    """Allocate each tensor; tensors of one matmul lie end to end."""
    places: dict[str, Tensor] = {}
    for name in headers:
        if name in places:
            continue
        names = _siblings(name, headers)
        whole = torch.empty(sum(prod(headers[n].shape) for n in names), dtype=dtype)
        for one, part in zip(names, whole.split([prod(headers[n].shape) for n in names]), strict=True):
            places[one] = part.view(headers[one].shape)
    return places


def _siblings(name: str, headers: dict[str, Header]) -> list[str]:
    """Return the names that share a matmul with `name`, in their order, or `name` alone."""
    for group in FUSED_PROJECTIONS:
        if found := re.fullmatch(rf"(.*\.)({'|'.join(group)})(\.weight|\.bias)", name):
            names = [f"{found[1]}{part}{found[3]}" for part in group]
            if all(n in headers and headers[n].shape[1:] == headers[name].shape[1:] for n in names):
                return names
    return [name]


def _read(stream: BinaryIO, header: Header, place: Tensor) -> None:
    stored, flat = STORED[header.dtype], place.view(-1)
    stream.seek(header.start)
    if stored == place.dtype:
        _fill(stream, flat)
        return
    piece = torch.empty(min(PIECE, flat.numel()), dtype=stored)
    for part in flat.split(PIECE):
        _fill(stream, piece[: len(part)])
        part.copy_(piece[: len(part)])


def _fill(stream: BinaryIO, flat: Tensor) -> None:
    """Read into the memory of `flat`; one read may return fewer bytes than requested. Raise OSError at a short file."""
    left = flat.view(torch.uint8).numpy().data
    while left:
        got = stream.readinto(left)  # type: ignore[attr-defined]
        if not got:
            raise OSError(f"the file ended {len(left)} bytes too early")
        left = left[got:]
