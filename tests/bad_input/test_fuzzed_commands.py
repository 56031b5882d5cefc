"""A small part of benchmarks/fuzz_commands.py: odd bytes in flags, names and the input of a chat."""

import sys
from pathlib import Path

from support.paths import ROOT


def test_odd_bytes_end_with_words(model: Path) -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from fuzz_commands import fuzz

    figures = fuzz(200, seed=3, model=model)
    assert figures["wrong"] == 0, "\n".join(figures["first_wrong"])
    assert figures["cases"] == 200
