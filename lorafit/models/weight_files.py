"""The weight files of a model: which they are, and the headers of their tensors. No tensor is read.

A safetensors file has the header's length in 8 little-endian bytes, the header as JSON, then the tensors.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafit.atomic import read_errors
from lorafit.errors import ModelError
from lorafit.messages import _, listed

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Header:
    """The entry of one tensor in a safetensors header. `size` is in bytes; `start` is its byte offset in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    start: int


def require_folder(folder: Path) -> None:
    """Raise ModelError unless `folder` is a folder."""
    if folder.is_dir():
        return
    raise ModelError(
        _("A base model must be a folder, but this is a file.") if folder.exists() else _("Model folder not found."),
        where=folder,
        fix=_(
            "Give `--model_name` a folder with config.json and *.safetensors, a model ID such as "
            "Qwen/Qwen3-0.6B, or `demo`."
        ),
    )


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of the model. Raises ModelError if one is missing."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise _no_weights(folder)
    try:
        with read_errors(folder / INDEX):
            names = sorted(set(json.loads((folder / INDEX).read_text("utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise broken_file(_("The index of the weight files cannot be read."), folder / INDEX, repr(error)) from None
    if missing := [name for name in names if not (folder / name).is_file()]:
        found = _("missing files: {missing} of {total} ({names})").format(
            missing=len(missing), total=len(names), names=listed(missing[:5])
        )
        raise ModelError(
            _("Some weight files of the model are missing."),
            where=folder,
            found=found,
            fix=_("Download the missing files again."),
        )
    return [folder / name for name in names]


def read_headers(file: Path) -> list[Header]:
    """Return the tensor headers of a safetensors file. Raises ModelError if the file is damaged or truncated."""
    size = file.stat().st_size
    try:
        with read_errors(file), file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            lines = json.loads(stream.read(length)) if length <= size - 8 else {}
        headers = parse_headers(lines, 8 + length)
        end = 8 + length + max((line["data_offsets"][1] for line in lines.values()), default=0)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise broken_file(_("This file is not safetensors, or its header is damaged."), file, repr(error)) from None
    if size < end:
        found = _("{size} bytes, while its header gives {end}").format(size=size, end=end)
        raise broken_file(_("This weight file is incomplete."), file, found)
    return headers


def parse_headers(lines: dict[str, Any], origin: int) -> list[Header]:
    """Return the tensors in `lines`, a parsed safetensors header. Tensor data start at byte `origin`.

    The metadata entry is removed from `lines`.
    """
    lines.pop("__metadata__", None)
    return [_header(name, line, origin) for name, line in lines.items()]


def _header(name: str, line: dict[str, Any], origin: int) -> Header:
    start, end = line["data_offsets"]
    return Header(name, str(line["dtype"]), tuple(line["shape"]), end - start, origin + start)


def _no_weights(folder: Path) -> ModelError:
    # .bin, .pth and .pt files are pickles: loading one can run code of its author.
    pickles = sorted(path.name for pattern in ("*.bin", "*.pth", "*.pt") for path in folder.glob(pattern))
    convert = "python -c \"from transformers import AutoModelForCausalLM as M; M.from_pretrained('{0}').save_pretrained('{0}')\""
    return ModelError(
        _("The model folder has no safetensors weights ({name}, or shards with {index}).").format(
            name=WEIGHTS, index=INDEX
        ),
        where=folder,
        found=listed(pickles) or file_names(folder),
        fix=_(
            "Use a safetensors version of the model: pickled weights are never loaded, because "
            "they can run code. If you trust the author, convert them: {command}"
        ).format(command=convert.format(folder))
        if pickles
        else _("Download the model again, including its *.safetensors files."),
    )


def broken_file(what: str, where: Path, found: object) -> ModelError:
    """Return the error for a damaged file of a model."""
    return ModelError(
        what,
        where=where,
        found=found,
        fix=_("Delete the file and download it again; in a git clone, run `git lfs pull`."),
    )


def file_names(folder: Path) -> str:
    """Return the names of the first twelve files in `folder`, for an error message."""
    names = sorted(path.name for path in folder.iterdir())
    return listed([*names[:12], *(["..."] if len(names) > 12 else [])]) if names else _("the folder is empty")
