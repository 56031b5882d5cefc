"""How do small gradients survive fp16? The loss is scaled by a power of two, and no step is ever skipped."""

import json
from pathlib import Path

START, LEAST, GROW_AFTER = 2.0**16, 2.0**-14, 1000
FILE = "loss_scale.json"


class LossScale:
    """`value` multiplies the loss. Powers of two change nothing but what under- and overflows."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.value = START if enabled else 1.0
        self.good_steps = 0

    def shrink(self) -> bool:
        """Halve after an overflow; False when there is nothing left to halve, so the gradient is truly not a number."""
        if not self.enabled or self.value <= LEAST:
            return False
        self.value, self.good_steps = self.value / 2, 0
        return True

    def grow(self) -> None:
        """Count a good step; double after GROW_AFTER of them."""
        self.good_steps += 1
        if self.enabled and self.good_steps >= GROW_AFTER:
            self.value, self.good_steps = self.value * 2, 0

    def save(self, folder: Path) -> None:
        if self.enabled:
            (folder / FILE).write_text(json.dumps({"scale": self.value, "good_steps": self.good_steps}))

    def load(self, folder: Path) -> None:
        """Take the scale back where one was saved: a run from fp32 continued in fp16 starts afresh."""
        path = folder / FILE
        if self.enabled and path.is_file():
            facts = json.loads(path.read_text())
            self.value, self.good_steps = float(facts["scale"]), int(facts["good_steps"])
