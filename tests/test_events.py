"""Events are read back as they were written."""

from pathlib import Path

import pytest

from lorafit.events import Answered, EventLog, Failed, Resumed, Stage, StepDone, read_events


def step(number: int) -> StepDone:
    """Return the event of step `number`."""
    return StepDone(step=number, loss=1.0, target_tokens=1, tokens=2, grad_norm=1.0, lr=1e-4, seconds=1.0,
                    peak_bytes=None, micro_batches=1, epoch=0.1)  # fmt: skip


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r", "\n", "\r\n"])
def test_a_text_with_any_line_end_in_it_is_still_one_line(tmp_path: Path, end: str) -> None:
    event = Answered(step=3, question=f"a{end}b", base="", tuned=f"{end}")
    with EventLog(tmp_path / "events.jsonl") as log:
        log.write(event)
        log.write(Stage(text="after"))
    found = read_events(tmp_path / "events.jsonl")
    assert found[0] == event
    assert len(found) == 2


def test_a_resume_voids_the_events_of_later_steps_and_a_truncated_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        for number in (1, 2, 3):
            log.write(step(number))
        log.write(Failed(step=3, text="lost"))
    with path.open("a") as file:
        file.write('{"event": "step", "st')
    with EventLog(path) as log:
        log.write(Resumed(step=2, checkpoint="step-000002"))
        log.write(step(3))
    assert [(e.name, e.step) for e in read_events(path)] == [("step", 1), ("step", 2), ("resumed", 2), ("step", 3)]
