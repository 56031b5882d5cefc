"""Is it told how far a download is, and does what goes wrong in it come out as it went in?"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorafit.events import Event, Stage
from lorafit.models import download
from lorafit.models.download import download_with_progress
from lorafit.progress import ProgressCallback
from lorafit.training.progress import stage_texts

PART = b"x" * 2**20


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "FIRST_SECONDS", 0.02)


def fetching(folder: Path) -> str:
    """Three parts of 1 MiB, the first there already; another name leads to it."""
    for number in (1, 2, 3):
        (folder / f"{number}.incomplete").write_bytes(PART)
        time.sleep(0.1)
    (folder / "link").symlink_to(folder / "1.incomplete")
    return "fetched"


def test_what_lies_there_is_told_with_the_time_left(tmp_path: Path) -> None:
    (tmp_path / "before").write_bytes(PART)
    told: list[str] = []
    assert download_with_progress(lambda: fetching(tmp_path), tmp_path, 4 * 2**20, told.append) == "fetched"
    assert any(text.startswith("2 MiB of 3 MiB, about") for text in told), told


def test_a_hub_that_tells_no_size_gives_what_is_there(tmp_path: Path) -> None:
    told: list[str] = []
    download_with_progress(lambda: fetching(tmp_path), tmp_path, None, told.append)
    assert "2 MiB so far" in told


def test_what_goes_wrong_comes_out_as_it_is_even_a_time_out(tmp_path: Path) -> None:
    def fail() -> str:
        raise TimeoutError("the hub says nothing")

    with pytest.raises(TimeoutError, match="says nothing"):
        download_with_progress(fail, tmp_path, None, lambda _text: None)


def test_a_job_in_a_thread_says_events_and_returns() -> None:
    returned = []

    def job(say: ProgressCallback) -> int:
        say("one")
        say("two")
        return 3

    def listened() -> Iterator[Event]:
        returned.append((yield from stage_texts(job)))

    assert [event.text for event in listened() if isinstance(event, Stage)] == ["one", "two"]
    assert returned == [3]
