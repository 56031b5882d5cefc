"""What goes to a place, and what is a place to us? The words that all files here share."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lorafit.transfer.bundle import BundleInfo
from lorafit.transfer.cloud.prices import Price


@dataclass(frozen=True)
class Quote:
    """What a run would be on a `machine`: device and numbers, time in seconds with its range, and what an hour costs.

    `fits` is False, and `words` say why, where it would not go.
    """

    machine: str
    gpu: str
    fits: bool
    words: str
    seconds: float | None = None
    low: float | None = None
    high: float | None = None
    price: Price | None = None

    @property
    def dollars(self) -> float | None:
        """For the whole run, starting and stopping not counted."""
        if self.seconds is None or self.price is None or self.price.dollars is None:
            return None
        return self.price.dollars * self.seconds / 3600


@dataclass(frozen=True)
class CloudPackage:
    """All that a place gets. `name` tells this run from others there; `flags` are for the training, `install` for pip."""

    facts: BundleInfo
    name: str
    bundle: str
    install: str  # the wheel beside it, or a requirement
    flags: list[str]
    offers: list[Quote]

    @property
    def has_wheel(self) -> bool:
        return self.install.endswith(".whl")


@dataclass(frozen=True)
class Platform:
    """A place. `machines` are those of catalogue/clouds.py; `write` makes the files and returns what the user does next.

    `check` raises ConfigError for what the place cannot take, before anything is written.
    """

    title: str
    machines: tuple[str, ...]
    check: Callable[[BundleInfo], None]
    write: Callable[[CloudPackage, Path], list[str]]
