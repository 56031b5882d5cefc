"""Folders that tests refer to."""

from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
SUPPORT = TESTS / "support"
LAWYER_LLAMA = ROOT.parent / "shared/data/lawyer_llama"  # outside the repository; tests that need it skip without it
