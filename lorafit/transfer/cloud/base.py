"""Types that all cloud modules share: a platform, the package for it, and a quote for one of its machines."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lorafit.transfer.bundle import BundleInfo
from lorafit.transfer.cloud.prices import Price


@dataclass(frozen=True)
class Quote:
    """The planner's estimate for a run on the rented machine `machine`: GPU, time in seconds, and price per hour.

    `low` and `high` are the range of `seconds`. If `fits` is True, `details` holds precision and quantization. Otherwise
    the run cannot be planned there, and `details` holds the reason.
    """

    machine: str
    gpu: str
    fits: bool
    details: str
    seconds: float | None = None
    low: float | None = None
    high: float | None = None
    price: Price | None = None

    @property
    def dollars(self) -> float | None:
        """The price of the whole run, without startup and shutdown; None if the time or the price is unknown."""
        if self.seconds is None or self.price is None or self.price.dollars is None:
            return None
        return self.price.dollars * self.seconds / 3600


@dataclass(frozen=True)
class CloudPackage:
    """Everything that a platform module needs to write its files.

    `name` identifies this run on the platform. `bundle` is the file name of the bundle. `flags` are for `lorafit train`.
    """

    facts: BundleInfo
    name: str
    bundle: str
    install: str  # argument of pip install: the file name of the wheel beside the bundle, or a requirement
    flags: list[str]
    quotes: list[Quote]

    @property
    def has_wheel(self) -> bool:
        """Whether `install` is a wheel, not a requirement."""
        return self.install.endswith(".whl")


@dataclass(frozen=True)
class Platform:
    """A cloud platform. `machines` are names from hardware/catalogue/clouds.py.

    `write` writes the platform's files and returns the next steps for the user. `check` raises ConfigError for a bundle
    that the platform does not support, before `write` is called.
    """

    title: str
    machines: tuple[str, ...]
    check: Callable[[BundleInfo], None]
    write: Callable[[CloudPackage, Path], list[str]]
