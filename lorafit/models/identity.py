"""The identity of a base model by its content: config.json, its code and its weight files, but not its name.

The quick digest of a weight file takes milliseconds: it covers the size, the header and blocks from the whole file. Only
the sha256 of the file finds a change between these blocks.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from lorafit.models.weight_files import weight_files

SAMPLES, BLOCK_BYTES = 64, 4096  # blocks of a weight file that its quick digest covers, evenly spaced
MOST_HEAD_BYTES = 100_000_000  # the limit of the safetensors format
NOTES = ("_name_or_path", "transformers_version")  # keys of config.json that do not affect the model
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileIdentity:
    """The digests of one file of a model. `sha256` is that of the whole file; None: not needed or not yet known."""

    quick: str
    sha256: str | None = None


def identify(folder: Path) -> dict[str, FileIdentity]:
    """Return the identity of each file that decides what the model in `folder` computes, by its name in the folder.

    Raises ModelError or OSError if a file cannot be read.
    """
    code = {path.name: FileIdentity(_sha256(path.read_bytes())) for path in sorted(folder.glob("*.py"))}
    weights = {
        path.relative_to(folder).as_posix(): FileIdentity(quick_digest(path), _blob_sha256(path))
        for path in weight_files(folder)
    }
    return {"config.json": FileIdentity(_config_digest(folder / "config.json")), **code, **weights}


def quick_digest(path: Path) -> str:
    """Return a digest of the size of a safetensors file, its header, and SAMPLES blocks from its start to its end."""
    size = path.stat().st_size
    digest = hashlib.sha256(f"{size} ".encode())
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        digest.update(file.read(min(length, MOST_HEAD_BYTES)))
        for place in range(SAMPLES):
            file.seek(max(size - BLOCK_BYTES, 0) * place // (SAMPLES - 1))
            digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()


def _config_digest(path: Path) -> str:
    """Return the digest of the settings in config.json, whatever their order and layout."""
    facts = json.loads(path.read_text("utf-8"))
    kept = {name: value for name, value in facts.items() if name not in NOTES}
    return _sha256(json.dumps(kept, sort_keys=True).encode())


def _blob_sha256(path: Path) -> str | None:
    """Return the sha256 by which the cache of huggingface_hub names a weight file; None for any other file."""
    blob = path.resolve()
    return blob.name if blob.parent.name == "blobs" and SHA256.fullmatch(blob.name) else None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
