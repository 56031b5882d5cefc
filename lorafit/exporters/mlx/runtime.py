"""mlx_lm as the program that measures an export for MLX, and its tokenizer beside that of the training."""

from importlib import metadata
from pathlib import Path
from typing import Any

from lorafit import registry
from lorafit.errors import ExportError
from lorafit.exporters.base import ExportSource
from lorafit.exporters.chat_files import require_same_split
from lorafit.messages import _

# Of KL(live || export) to KL(live || base), by bits.
GATES = {16: 0.05, 8: 0.10, 4: 0.25}
TIE = 0.05  # nats that make a close call of a greedy answer


def runtime_name() -> str:
    """Return the program's name with its version."""
    return f"mlx_lm {metadata.version('mlx-lm')}"


def open_model(source: ExportSource, folder: Path, adapter: Path | None = None) -> Any:
    """Return the model in `folder`, with mlx-lm's adapter in the folder `adapter`, as a context manager."""
    return registry.load(registry.MLX_RUNTIME)(folder, adapter, source.trust_remote_code)


def open_form(source: ExportSource, folder: Path, _length: int) -> Any:
    """Return the exported model in `folder`."""
    return open_model(source, folder)


def require_same_tokens(model: Any, source: ExportSource) -> int:
    """Return the number of texts that mlx_lm splits into the tokens of the training.

    Raises ExportError if a text differs, or if mlx_lm does not end answers at an end token of the training.
    """
    fix = _("Export with --to merged instead, and please report it.")
    if missing := {*source.tokenizer.end_ids} - model.ends():
        raise ExportError(_("The end tokens of the export are not those of the training."), found=missing, fix=fix)
    return require_same_split(
        model.tokenize, source, _("mlx_lm splits a text into other tokens than the training does.")
    )
