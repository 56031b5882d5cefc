"""The code passes ruff and mypy, run as by `make lint`."""

import subprocess
import sys

import pytest
from support.paths import ROOT


@pytest.mark.parametrize("words", [["ruff", "format", "--check", "."], ["ruff", "check", "."], ["mypy"]], ids=" ".join)
def test_ruff_and_mypy_report_nothing(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
