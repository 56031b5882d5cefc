"""What do several tests share?"""

import os
import signal
from pathlib import Path

import pytest

from lorafit.messages import set_language
from lorafit.models.demo import demo_model


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    """The embedded model's folder in the user's cache, made on first use."""
    return demo_model()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model of each family, under its name."""
    from support import tiny  # torch and transformers, seconds that most tests need not wait for

    folder = tmp_path_factory.mktemp("models")
    for family in tiny.FAMILIES | tiny.LONERS:
        tiny.save_model(family, folder / family)
    return folder


@pytest.fixture(scope="session", autouse=True)
def signals_are_heard() -> None:
    """Tests begun in the background or by `nohup` would have their children ignore what they send them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def own_calibrations(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What tests measure is not kept for the user's plans, nor the other way round."""
    os.environ["LORAFIT_CALIBRATIONS"] = str(tmp_path_factory.mktemp("calibrations") / "calibrations.json")


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test begins in English, whatever language the one before it, or the machine, speaks."""
    monkeypatch.setenv("LORAFIT_LANG", "en")
    set_language()
