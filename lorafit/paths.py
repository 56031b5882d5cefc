"""The user's folders that the program writes to."""

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """Return the program's cache folder: LORAFIT_CACHE, XDG_CACHE_HOME/lorafit, or the system's default."""
    if own := os.environ.get("LORAFIT_CACHE"):
        return Path(own).expanduser().absolute()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser().absolute() / "lorafit"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "lorafit"
