"""Fixtures for all tests."""

import os
import signal
from pathlib import Path

import pytest

from lorafit.messages import set_language
from lorafit.models.demo import demo_model


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    """The demo model's folder in the user's cache, built on first use."""
    return demo_model()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model of each family, in a subfolder of the family's name."""
    from support import tiny  # imports torch and transformers: seconds that most tests do not need

    folder = tmp_path_factory.mktemp("models")
    for family in tiny.FAMILIES | tiny.LONERS:
        tiny.save_model(family, folder / family)
    return folder


@pytest.fixture(scope="session", autouse=True)
def default_signal_handlers() -> None:
    """Handle SIGINT and SIGHUP as usual, so that child processes do too.

    In the background or under `nohup`, the tests inherit ignored signals and would pass them on.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def temporary_calibrations(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the measurements of tests in a temporary file, apart from the user's."""
    os.environ["LORAFIT_CALIBRATIONS"] = str(tmp_path_factory.mktemp("calibrations") / "calibrations.json")


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start every test in English, whatever the system's language is and the previous test has set."""
    monkeypatch.setenv("LORAFIT_LANG", "en")
    set_language()
