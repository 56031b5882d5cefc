"""Loss scaling for fp16, by powers of two; no step is ever skipped."""

import json
from pathlib import Path

START, LEAST, GROW_AFTER = 2.0**16, 2.0**-14, 1000
FILE = "loss_scale.json"


class LossScale:
    """The factor `value` on the loss. A power of two changes nothing except underflow and overflow."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.value = START if enabled else 1.0
        self.good_steps = 0

    def shrink(self) -> bool:
        """Halve the scale after an overflow; return False if it cannot be halved: the gradient is truly not finite."""
        if not self.enabled or self.value <= LEAST:
            return False
        self.value, self.good_steps = self.value / 2, 0
        return True

    def grow(self) -> None:
        """Count a good step; double the scale after GROW_AFTER of them."""
        self.good_steps += 1
        if self.enabled and self.good_steps >= GROW_AFTER:
            self.value, self.good_steps = self.value * 2, 0

    def save(self, folder: Path) -> None:
        """Write the scale to `folder` if scaling is enabled."""
        if self.enabled:
            (folder / FILE).write_text(json.dumps({"scale": self.value, "good_steps": self.good_steps}), "utf-8")

    def load(self, folder: Path) -> None:
        """Read the scale from `folder` if one was saved; fp16 after fp32 starts from the initial scale."""
        path = folder / FILE
        if self.enabled and path.is_file():
            facts = json.loads(path.read_text("utf-8"))
            self.value, self.good_steps = float(facts["scale"]), int(facts["good_steps"])
