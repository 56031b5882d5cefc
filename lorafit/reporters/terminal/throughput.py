"""How fast does training go, how far is it, how long is left? Worked out from events alone."""

import math
from collections import deque
from dataclasses import dataclass, field

from lorafit.events import StepDone

DECAY = 0.9  # of the smoothed loss, per step
RECENT = 20  # steps over which the speed is taken


@dataclass
class Throughput:
    """Figures of a run of `steps` steps, as far as the steps that it was shown tell."""

    steps: int
    step: int = 0
    _seen: int = 0
    _loss: float = 0.0
    _recent: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=RECENT))
    _anchor: tuple[float, int] | None = None  # time and number of the step before the first one shown
    _now: float = 0.0

    def on_event(self, event: StepDone) -> None:
        """Take a finished step into account."""
        self.step, self._now = event.step, event.time
        if self._anchor is None:
            self._anchor = (event.time - event.seconds, event.step - 1)
        self._recent.append((event.tokens, event.seconds))
        if event.loss is not None and math.isfinite(event.loss):
            self._seen += 1
            self._loss = DECAY * self._loss + (1 - DECAY) * event.loss

    @property
    def loss(self) -> float | None:
        """The smoothed training loss (nats); without the pull towards 0 that smoothing has at the start."""
        return self._loss / (1 - DECAY**self._seen) if self._seen else None

    @property
    def tokens_per_second(self) -> float | None:
        seconds = sum(seconds for _tokens, seconds in self._recent)
        return sum(tokens for tokens, _seconds in self._recent) / seconds if seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """Time to the last step at the rate seen so far, evaluations and saves included."""
        if self._anchor is None:
            return None
        time, step = self._anchor
        return max((self.steps - self.step) * (self._now - time) / (self.step - step), 0.0)  # clocks are set back
