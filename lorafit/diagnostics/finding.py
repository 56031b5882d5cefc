"""Findings of `lorafit doctor`: a fact, a mark, and a fix as text and as a command."""

import json
from dataclasses import asdict, dataclass
from typing import Literal

import lorafit
from lorafit.hardware.detect import Machine

# told: a fact; good: tested and correct; poor: worse than possible on this machine; bad: training cannot work.
Mark = Literal["told", "good", "poor", "bad"]
Part = Literal["machine", "packages", "works", "places"]


@dataclass(frozen=True)
class Finding:
    """Result of one check. `what` is the subject, `found` the result, `fix` the remedy, `command` its shell command."""

    part: Part
    what: str
    found: str
    mark: Mark = "told"
    fix: str | None = None
    command: str | None = None


@dataclass(frozen=True)
class Report:
    """All findings. `works_on` is the device and precision that training chooses, or None if training cannot work."""

    machine: Machine
    findings: list[Finding]
    packages: dict[str, str]  # name -> version
    works_on: tuple[str, str] | None

    @property
    def well(self) -> bool:
        """Whether no finding is bad."""
        return all(finding.mark != "bad" for finding in self.findings)

    def to_json(self) -> str:
        """Return the report as one JSON object for a bug report, with the findings in display order."""
        facts = {
            "lorafit": lorafit.__version__,
            "well": self.well,
            "machine": asdict(self.machine),
            "packages": self.packages,
            "findings": [asdict(finding) for finding in self.findings],
        }
        return json.dumps(facts, ensure_ascii=False, indent=1)
