"""What does the doctor find? Facts with a mark, a remedy in words and one to paste."""

import json
from dataclasses import asdict, dataclass
from typing import Literal

import lorafit
from lorafit.hardware.detect import Machine

# told: a fact; good: tried and right; poor: less than this machine could; bad: training cannot work.
Mark = Literal["told", "good", "poor", "bad"]
Part = Literal["machine", "packages", "works", "places"]


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `fix` says what to do about one that is not good, `command` is what to type for it."""

    part: Part
    what: str
    found: str
    mark: Mark = "told"
    fix: str | None = None
    command: str | None = None


@dataclass(frozen=True)
class Report:
    """Everything that was found. `works_on` is how training would go: device and precision; None where it cannot."""

    machine: Machine
    findings: list[Finding]
    packages: dict[str, str]  # name -> version
    works_on: tuple[str, str] | None

    @property
    def well(self) -> bool:
        return all(finding.mark != "bad" for finding in self.findings)

    def to_json(self) -> str:
        """The report for a bug report: one object, findings in the order in which they are shown."""
        facts = {
            "lorafit": lorafit.__version__,
            "well": self.well,
            "machine": asdict(self.machine),
            "packages": self.packages,
            "findings": [asdict(finding) for finding in self.findings],
        }
        return json.dumps(facts, ensure_ascii=False, indent=1)
