"""One case of tests/test_remedies.py: a command that fails, and what its user does next; words that many cases share."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from _pytest.mark import ParameterSet

from lorafit.cli.app import main
from support.remedies import deeds

MODEL = "--model_name model --dataset_name law.jsonl --max_length 96 --effective_batch 4 --lora_r 4 --lora_alpha 8"
TRAIN = f"train --no_supervisor {MODEL} --output_dir new"
DRY = f"{TRAIN} --max_steps 2 --dry_run"
PLAN = f"plan --machine kaggle-t4x2 {MODEL}"
ASK = "--prompt hi --max_new_tokens 2"
AS_IT_IS = ""
SKIP = None  # the deed is for another case of the same error, or needs the internet or a running training


def nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Remedy:
    """A command that fails, the texts in its fix, and for each deed in the fix what the user types.

    A deed may have `*` for a name that differs each time. AS_IT_IS is the deed as printed. Other values are flags with values, or a whole command. `before` is done first, and
    `by_hand` between the error and the deeds. `environ` is set for the command that fails, and then unset. With
    `in_details`, the remedy is in the reason of a rejected row, above the fix.
    """

    argv: str
    texts: tuple[str, ...]
    typed: dict[str, str | None]
    before: Callable[[], object] = nothing
    by_hand: Callable[[], object] = nothing
    environ: dict[str, str] = field(default_factory=dict)
    in_details: bool = False


def remedy(argv: str, text: str, typed: dict[str, str | None] | None = None, *more: str, **rest: Any) -> ParameterSet:
    """Return a Remedy as a parameter of the test. Without `typed`, every deed is typed as it is."""
    typed = dict.fromkeys(deeds(text), AS_IT_IS) if typed is None else typed
    marks, id = rest.pop("marks", ()), argv.replace(DRY, "train").replace(MODEL, "...")
    return pytest.param(Remedy(argv, (text, *more), typed, **rest), marks=marks, id=id)


def command(argv: str) -> Callable[[], object]:
    """Return a function that runs a command, which succeeds."""
    return partial(_run, shlex.split(argv))


def _run(argv: list[str]) -> None:
    assert main(argv) == 0
