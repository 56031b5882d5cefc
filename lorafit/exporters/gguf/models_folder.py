"""The folder in which LM Studio looks for models."""

from pathlib import Path

AUTHOR = "lorafit"
POINTER = ".lmstudio-home-pointer"  # a file in the home folder that names LM Studio's folder


def models_folder() -> Path | None:
    """Return the folder in which LM Studio looks for models, or None where it is not installed."""
    try:
        home = Path((Path.home() / POINTER).read_text("utf-8").strip())
    except (OSError, ValueError, RuntimeError):
        home = Path.home() / ".lmstudio"
    return home / "models" if home.is_dir() else None
