"""How does this very program get to another machine? As a wheel, built from the sources that are running.

Installed from a wheel itself, it has no sources beside it: then the other machine takes the same version from the index.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from lorafit import __version__

ROOT = Path(__file__).parents[3]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "lorafit")
EPOCH = "315532800"  # 1980: the same sources give the same bytes


def program(folder: Path) -> str:
    """What pip is to install there: the name of a wheel, built into `folder`, or a requirement where none can be built."""
    if not all((ROOT / name).exists() for name in SOURCES):
        return f"lorafit=={__version__}"
    with tempfile.TemporaryDirectory(prefix="lorafit-") as scratch:
        sources, built = Path(scratch) / "sources", Path(scratch) / "built"
        for name in SOURCES:
            _copy(ROOT / name, sources / name)
        done = subprocess.run(_command(sources, built), env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH},
                              capture_output=True, check=False)  # fmt: skip
        wheels = list(built.glob("lorafit-*.whl"))
        if done.returncode or not wheels:
            return f"lorafit=={__version__}"
        shutil.copyfile(wheels[0], folder / wheels[0].name)
        return wheels[0].name


def _copy(source: Path, target: Path) -> None:
    """Only what belongs to the program: building leaves things behind, and other tools too."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_file():
        shutil.copyfile(source, target)
    else:
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))


def _command(sources: Path, built: Path) -> list[str]:
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--disable-pip-version-check"]
    at_hand = ["--no-build-isolation"] if find_spec("setuptools") else []  # else pip fetches what builds
    return [*pip, *at_hand, "-w", str(built), str(sources)]
