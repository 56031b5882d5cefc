"""Outputs for a pipe: several fixes stand apart, fields of a plan have units, and a reason for all machines is told once."""

import io
from pathlib import Path

from rich.console import Console

from lorafit.data.findings import LengthStats
from lorafit.errors import ConfigError
from lorafit.reporters.terminal.cloud import show_cloud_files
from lorafit.reporters.terminal.data import _bars
from lorafit.reporters.terminal.errors import show_error
from lorafit.reporters.terminal.status import status_line
from lorafit.reporters.text.settings import field_name, field_text
from lorafit.transfer.bundle import BundleInfo
from lorafit.transfer.cloud.base import Quote
from lorafit.transfer.cloud.send import CloudFiles


def console() -> tuple[Console, io.StringIO]:
    """Return a console of 80 columns that is not a terminal, and its text."""
    out = io.StringIO()
    return Console(file=out, width=80, highlight=False), out


def test_the_second_of_two_fixes_is_indented_under_the_first() -> None:
    screen, out = console()
    show_error(ConfigError("Too much.", fix="--a 1: less\n--b 2: least"), screen)
    assert out.getvalue() == "Error: Too much.\nfix: --a 1: less\n  --b 2: least\n"


def test_fields_of_a_plan_have_names_and_units_and_settings_stay_as_they_are_typed() -> None:
    assert [field_name(name) for name in ("predicted_seconds", "hang_seconds")] == ["time", "hang_seconds"]
    assert field_text("available_bytes", 21_986_590_720) == "20.5 GiB"
    assert field_text("predicted_step_seconds", 65.3183) == "1 min 5 s"
    assert field_text("predicted_tokens_per_second", 203.835) == "204"
    assert field_text("hang_seconds", 300.0) == "300"


def cloud_text(details: list[str]) -> str:
    """Return the output of `cloud` for machines without a plan, for the reasons `details`."""
    quotes = [Quote(f"m{place}", "T4", fits=False, details=reason) for place, reason in enumerate(details)]
    facts = BundleInfo(1, "new", "run", 0, "acme/tiny", False, {})
    screen, out = console()
    show_cloud_files(CloudFiles("Colab", Path("out"), facts, ["run.zip"], quotes, []), screen)
    return out.getvalue()


def test_a_reason_that_holds_for_all_machines_is_told_once() -> None:
    assert "✗ No plan for m0, m1: No tokenizer." in cloud_text(["No tokenizer.", "No tokenizer."])
    assert cloud_text(["No tokenizer.", "Too small."]).count("✗") == 2


def test_the_bars_of_lengths_start_at_the_first_bin_with_rows() -> None:
    stats = LengthStats(
        shortest=20, edges=[0, 10, 20, 30], rows=[0, 0, 3, 0], median=25.0, ninth_decile=28.0, longest=31
    )
    assert [str(row[0]) for row in _bars(stats, 512)] == ["tokens", "20 ", "30+"]


def test_a_status_line_ends_with_an_ellipsis_as_the_stages_of_training_do() -> None:
    screen, out = console()
    with status_line(screen) as say:
        say("Reading law.jsonl")
    assert out.getvalue() == "Reading law.jsonl ...\n"
