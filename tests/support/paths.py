"""Folders that tests refer to."""

from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
SUPPORT = TESTS / "support"
FIELD = ROOT.parent / "shared/field"  # as below
LAWYER_LLAMA = ROOT.parent / "shared/data/lawyer_llama"  # outside the repository; tests that need it skip without it
