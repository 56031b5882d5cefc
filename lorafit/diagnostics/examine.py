"""All checks of `lorafit doctor`, run in order. Nothing on the machine is changed."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from lorafit.diagnostics.engines import SelfTestProcess, chosen_device, device_finding
from lorafit.diagnostics.finding import Finding, Report
from lorafit.diagnostics.folders import folder_findings, hub_finding
from lorafit.diagnostics.machine import machine_findings, nvidia_driver
from lorafit.diagnostics.packages import Packages, package_findings
from lorafit.diagnostics.redact import scrub
from lorafit.errors import LorafitError
from lorafit.hardware import detect
from lorafit.hardware.detect import Machine, Run
from lorafit.messages import _


def examine(output_dir: Path) -> Report:
    """Run all checks on this machine. They take about one second, plus the time of the self-tests and the hub."""
    machine = detect.detect_machine()
    with ThreadPoolExecutor(1) as pool:
        hub = pool.submit(hub_finding)
        trials = start_self_tests(machine)
        findings = [*_facts(machine, detect.command_output, Packages()), *self_test_findings(machine, trials)]
        findings += [*folder_findings(output_dir), hub.result()]
    return report(machine, findings, Packages())


def report(machine: Machine, findings: list[Finding], packages: Packages) -> Report:
    """Return the report, with secrets and personal names removed from the findings."""
    shown = [_scrubbed(finding) for finding in findings]
    bad = any(finding.mark == "bad" for finding in shown)
    return Report(machine, shown, packages.versions(), None if bad else chosen_device(machine))


def start_self_tests(machine: Machine) -> SelfTestProcess | None:
    """Start the self-tests on the device that training chooses. Return None if training would refuse to start."""
    try:
        detect.check_machine(machine)
        return SelfTestProcess(*chosen_device(machine))
    except LorafitError:
        return None


def self_test_findings(machine: Machine, trials: SelfTestProcess | None) -> Iterator[Finding]:
    """Yield the findings on the chosen device and of the self-tests."""
    if trials is not None:
        yield device_finding(machine)
        yield from trials.findings()
    elif machine.rosetta or (machine.system == "Darwin" and machine.arch != "arm64"):
        yield Finding("works", _("training"), _("not tested: PyTorch is not available for this system"), "bad")
    else:
        yield device_finding(machine)


def _facts(machine: Machine, run: Run, packages: Packages) -> Iterator[Finding]:
    driver = nvidia_driver(run) if machine.gpu("cuda") else None
    yield from machine_findings(machine, driver)
    yield from package_findings(machine, driver, packages)


def _scrubbed(finding: Finding) -> Finding:
    fix, command = (None if text is None else scrub(text) for text in (finding.fix, finding.command))
    return replace(finding, found=scrub(finding.found), fix=fix, command=command)
