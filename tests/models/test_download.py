"""Downloads report their progress, and an error of a download reaches the caller unchanged."""

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
def frequent_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Report after 0.02 s instead of 2 s."""
    monkeypatch.setattr(download, "FIRST_SECONDS", 0.02)


def fetch_into(folder: Path) -> str:
    """Write three files of 1 MiB, 0.1 s apart, and a link to the first."""
    for number in (1, 2, 3):
        (folder / f"{number}.incomplete").write_bytes(PART)
        time.sleep(0.1)
    (folder / "link").symlink_to(folder / "1.incomplete")
    return "fetched"


def test_what_is_downloaded_is_reported_with_the_time_left(tmp_path: Path) -> None:
    (tmp_path / "before").write_bytes(PART)
    reports: list[str] = []
    assert download_with_progress(lambda: fetch_into(tmp_path), tmp_path, 4 * 2**20, reports.append) == "fetched"
    assert any(text.startswith("2 MiB of 3 MiB, about") for text in reports), reports


def test_without_a_total_size_the_downloaded_bytes_are_reported(tmp_path: Path) -> None:
    reports: list[str] = []
    download_with_progress(lambda: fetch_into(tmp_path), tmp_path, None, reports.append)
    assert "2 MiB downloaded" in reports


def test_an_error_of_the_download_is_raised_unchanged_even_a_timeout(tmp_path: Path) -> None:
    def fail() -> str:
        raise TimeoutError("the hub says nothing")

    with pytest.raises(TimeoutError, match="says nothing"):
        download_with_progress(fail, tmp_path, None, lambda _text: None)


def test_texts_of_a_job_in_a_thread_become_events_and_its_result_is_returned() -> None:
    returned = []

    def job(say: ProgressCallback) -> int:
        say("one")
        say("two")
        return 3

    def events() -> Iterator[Event]:
        returned.append((yield from stage_texts(job)))

    assert [event.text for event in events() if isinstance(event, Stage)] == ["one", "two"]
    assert returned == [3]
