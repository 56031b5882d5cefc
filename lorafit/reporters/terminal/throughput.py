"""Speed, progress and remaining time of training, computed from events alone."""

import math
from collections import deque
from dataclasses import dataclass, field

from lorafit.events import StepDone

DECAY = 0.9  # of the smoothed loss, per step
RECENT = 20  # steps in the mean speed


@dataclass
class Throughput:
    """Figures of a run of `steps` steps, from the `StepDone` events given to on_event()."""

    steps: int
    step: int = 0
    _seen: int = 0
    _loss: float = 0.0
    _recent: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=RECENT))
    _anchor: tuple[float, int] | None = None  # time and number of the step before the first event
    _now: float = 0.0

    def on_event(self, event: StepDone) -> None:
        """Include a finished step."""
        self.step, self._now = event.step, event.time
        if self._anchor is None:
            self._anchor = (event.time - event.seconds, event.step - 1)
        self._recent.append((event.tokens, event.seconds))
        if event.loss is not None and math.isfinite(event.loss):
            self._seen += 1
            self._loss = DECAY * self._loss + (1 - DECAY) * event.loss

    @property
    def loss(self) -> float | None:
        """Return the smoothed training loss in nats, corrected for the bias towards 0 at the start."""
        return self._loss / (1 - DECAY**self._seen) if self._seen else None

    @property
    def tokens_per_second(self) -> float | None:
        """Return the mean speed over the last RECENT steps."""
        seconds = sum(seconds for _tokens, seconds in self._recent)
        return sum(tokens for tokens, _seconds in self._recent) / seconds if seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """Return the seconds to the last step at the mean rate so far, evaluations and saves included."""
        if self._anchor is None:
            return None
        time, step = self._anchor
        return max((self.steps - self.step) * (self._now - time) / (self.step - step), 0.0)  # a clock may be set back
