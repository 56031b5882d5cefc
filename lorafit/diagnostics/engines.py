"""Self-tests of all engines and quantizations on this machine, in a separate process."""

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from lorafit.config import TrainConfig
from lorafit.diagnostics.finding import Finding, Mark
from lorafit.diagnostics.machine import pip_install
from lorafit.errors import LorafitError
from lorafit.hardware.detect import Machine
from lorafit.messages import _, language
from lorafit.planner import device_precision

SECONDS = 120.0  # timeout for all self-tests together; a device can hang


def default_engine(device: str) -> str:
    """Return the engine that training chooses on `device`."""
    return "mlx" if device == "mps" and find_spec("mlx") else "torch"


def chosen_device(machine: Machine) -> tuple[str, str]:
    """Return the device and precision that training chooses. Raises LorafitErrors if training would refuse to start."""
    device = device_precision.choose_device(TrainConfig(), machine).value
    return device, device_precision.precisions(TrainConfig(), machine, device)[0]


def device_finding(machine: Machine) -> Finding:
    """Return a finding on the device that training chooses, with the reason."""
    try:
        choice = device_precision.choose_device(TrainConfig(), machine)
    except LorafitError as error:
        return Finding("works", _("device"), error.brief, "bad", error.fix)
    mark: Mark = "poor" if choice.reason.startswith("⚠") else "good"
    return Finding("works", _("device"), choice.reason.lstrip("✓⚠️ "), mark)


class SelfTestProcess:
    """The process that runs the self-tests. It starts at once, so that the other checks run in parallel."""

    def __init__(self, device: str, precision: str) -> None:
        self.device = device
        command = [sys.executable, "-m", "lorafit.diagnostics.self_test", device, precision, language()]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
        )

    def findings(self) -> Iterator[Finding]:
        """Wait for the process and yield a finding for each self-test, also for one that crashed the process."""
        output, errors, late = self._end()
        lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        told = {(line["kind"], line["name"]): line for line in lines}  # the last line of each self-test has its result
        for facts in told.values():
            if "good" not in facts:
                facts["good"], facts["found"] = False, _death(self._process.returncode, errors, late)
            yield self._finding(facts)
        if not told:
            yield Finding("works", default_engine(self.device), _death(self._process.returncode, errors, late), "bad")

    def _end(self) -> tuple[str, str, bool]:
        try:
            return *self._process.communicate(timeout=SECONDS), False
        except subprocess.TimeoutExpired:
            self._process.kill()
            return *self._process.communicate(), True

    def _finding(self, facts: dict[str, Any]) -> Finding:
        name = facts["name"] if facts["kind"] == "engine" else facts["name"].replace("bit", "-bit")
        mark: Mark = "good" if facts["good"] else "bad" if self._needed(facts) else "poor"
        command = pip_install(*shlex.split(facts["install"])[2:]) if "install" in facts else None
        return Finding("works", name, facts["found"], mark, facts.get("fix"), command)

    def _needed(self, facts: dict[str, Any]) -> bool:
        """Return whether training needs this engine or quantization with default settings."""
        if facts["kind"] == "engine":
            return bool(facts["name"] == default_engine(self.device))
        return bool(device_precision.choose_quantization(TrainConfig(), self.device).value == facts["name"])


def _death(code: int, errors: str, late: bool) -> str:
    if late:
        return _("no response within {seconds:.0f} s").format(seconds=SECONDS)
    name = signal.Signals(-code).name if code < 0 else str(code)
    last = next((line.strip() for line in reversed(errors.splitlines()) if line.strip()), "")
    return _("the process ended with {name}").format(name=name) + (f": {last}" if last else "")
