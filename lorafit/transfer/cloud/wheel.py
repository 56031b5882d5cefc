"""The wheel of this program for another machine, built from the sources that are running.

A lorafit that was installed from a wheel has no sources. The other machine then installs the same version from the
package index.
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
EPOCH = "315532800"  # 1980-01-01; a fixed time, so that the same sources give the same bytes


def build_wheel(folder: Path) -> str:
    """Build a wheel into `folder` and return its file name, or a requirement for pip if no wheel can be built."""
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
    """Copy a file or a folder, without __pycache__ and hidden files, which builds and other tools leave behind."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_file():
        shutil.copyfile(source, target)
    else:
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))


def _command(sources: Path, built: Path) -> list[str]:
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--disable-pip-version-check"]
    at_hand = ["--no-build-isolation"] if find_spec("setuptools") else []  # else pip downloads setuptools
    return [*pip, *at_hand, "-w", str(built), str(sources)]
