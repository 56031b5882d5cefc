"""The check at the end of a run that the installed `peft` loads the adapter. A child process asks it.

The answer is an event, a section of the adapter's README.md, and the file peft_check.json beside it. The child is
engines/torch/peft_check.py. A check that fails, or that cannot be made, never ends a run.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lorafit import __version__
from lorafit.atomic import atomic_file
from lorafit.errors import LorafitError
from lorafit.events import AdapterChecked
from lorafit.hardware.detect import detect_machine
from lorafit.messages import _, listed
from lorafit.models.weight_files import read_headers
from lorafit.paths import cache_folder
from lorafit.run_folders.adapter import WEIGHTS
from lorafit.run_folders.peft_form import CONFIG, change_settings
from lorafit.units import MIB, bytes_text

REPORT = "peft_check.json"
PROGRAM = "lorafit.engines.torch.peft_check"
NEEDED = ("peft", "torch", "transformers")
SECONDS = 60.0  # after which the check is given up
POLL_SECONDS = 0.2
NEEDED_BYTES = 700 * MIB  # the child takes about 420 MiB
SHOWN_NAMES = 3
# The child is no part of a distributed training, needs no GPU and downloads nothing.
APART = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}


class CannotCheck(Exception):
    """The reason why the check was not made, in the user's language."""


def check_adapter(
    folder: Path, base: Path, trust_remote_code: bool, beat: Callable[[], None] = lambda: None
) -> AdapterChecked:
    """Ask peft about the adapter in `folder` on the model in the folder `base`; return the answer.

    If peft takes all only with other settings in adapter_config.json, these are written. `beat` is called while the
    child works.
    """
    try:
        report = ask_peft(folder, base, trust_remote_code, beat)
        if report["changes"] and is_complete(report):
            change_settings(folder, report["changes"])
        event = AdapterChecked(
            text=verdict(report), peft=report["peft"], loaded=report["taken"], tensors=report["total"]
        )
        _write(folder, report, event.text)
    except (CannotCheck, LorafitError, ImportError, OSError, ValueError, KeyError, TypeError) as error:
        event = AdapterChecked(text=_("Not checked whether `peft` loads this adapter: {why}.").format(why=error))
    return event


def ask_peft(folder: Path, base: Path, trust_remote_code: bool, beat: Callable[[], None]) -> dict[str, Any]:
    """Return the child's report, as engines/torch/peft_check.py describes it. Raises CannotCheck.

    A complete report is kept in the cache: the next run with the same kind of adapter needs no child.
    """
    for package in NEEDED:
        if find_spec(package) is None:
            raise CannotCheck(_("the package `{name}` is not installed").format(name=package))
    kept = cache_folder() / "peft_checks" / f"{_question(folder, base, trust_remote_code)}.json"
    with suppress(OSError, ValueError):
        known: dict[str, Any] = json.loads(kept.read_text("utf-8"))
        return known
    report = _ask_child(folder, base, trust_remote_code, beat)
    if is_complete(report):
        with suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(kept) as path:
                path.write_text(json.dumps(report) + "\n", "utf-8")
    return report


def _question(folder: Path, base: Path, trust_remote_code: bool) -> str:
    """Return a digest of all that the answer depends on, except the weights of adapter and base."""
    settings = json.loads((folder / CONFIG).read_text("utf-8"))
    settings.pop("base_model_name_or_path", None)
    shapes = sorted((header.name, header.shape) for header in read_headers(folder / WEIGHTS))
    # Code beside the weights of a base model may make other modules from the same config.json.
    code = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(base.glob("*.py"))]
    facts = [settings, shapes, (base / "config.json").read_text("utf-8"), code, trust_remote_code, __version__,
             [version(package) for package in NEEDED]]  # fmt: skip
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _ask_child(folder: Path, base: Path, trust_remote_code: bool, beat: Callable[[], None]) -> dict[str, Any]:
    if (free := detect_machine().available_bytes) < NEEDED_BYTES:
        text = _("it needs {needed} of memory, and {free} are available")
        raise CannotCheck(text.format(needed=bytes_text(NEEDED_BYTES), free=bytes_text(free)))
    command = [sys.executable, "-m", PROGRAM, str(base), str(folder), *(["trusted"] if trust_remote_code else [])]
    environment = {name: value for name, value in os.environ.items() if name not in APART} | ENVIRONMENT
    # Files, since a pipe that nobody reads fills up.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, env=environment) as child:
            _wait(child, beat)
        texts = []
        for file in (out, errors):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace").strip().splitlines() or [""])
    if child.returncode:
        raise CannotCheck(texts[1][-1][:300] or f"exit {child.returncode}")
    report: dict[str, Any] = json.loads(texts[0][-1])
    return report


def _wait(child: subprocess.Popen[bytes], beat: Callable[[], None]) -> None:
    """Wait for `child`; end it and raise CannotCheck after SECONDS."""
    until = time.monotonic() + SECONDS
    try:
        while child.poll() is None:
            beat()
            if time.monotonic() > until:
                raise CannotCheck(_("it took more than {seconds} seconds").format(seconds=int(SECONDS)))
            time.sleep(POLL_SECONDS)
    finally:
        if child.poll() is None:
            child.kill()


def is_complete(report: dict[str, Any]) -> bool:
    """Return whether peft takes every tensor of the adapter, by its `report`."""
    return bool(report["taken"] == report["total"] and not report["new"] and report["error"] is None)


def verdict(report: dict[str, Any]) -> str:
    """Return the answer of `report` in the user's language."""
    peft = f"peft {report['peft']}"
    if is_complete(report):
        text = _("{peft} loads this adapter: {taken} of {total} tensors")
        return text.format(peft=peft, taken=report["taken"], total=report["total"])
    use = _("`lorafit chat` and inference.py use all of it.")
    if report["error"] is not None:
        text = _("{peft} does not load this adapter: {why}")
        return f"{text.format(peft=peft, why=report['error'])} {use}"
    text = _("{peft} loads only a part of this adapter: {taken} of {total} tensors; not, for example: {names}.")
    names = listed((report["dropped"] or report["new"])[:SHOWN_NAMES])
    return f"{text.format(peft=peft, taken=report['taken'], total=report['total'], names=names)} {use}"


def _write(folder: Path, report: dict[str, Any], verdict: str) -> None:
    """Write the report as JSON into the adapter's `folder`, and the verdict into its README.md."""
    with atomic_file(folder / REPORT) as path:
        path.write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", "utf-8")
    settings = json.loads((folder / CONFIG).read_text("utf-8"))
    lines = ["## PEFT", verdict]
    if is_complete(report):
        kind = report["loader"]
        lines.append(f'    from peft import {kind}\n    model = {kind}.from_pretrained(".")')
    if settings.get("target_parameters"):
        lines.append(_("Load the base model without quantization: `peft` cannot adapt quantized parameters."))
    card = folder / "README.md"
    text = "\n\n".join([card.read_text("utf-8").rstrip(), *lines]) + "\n"
    with atomic_file(card) as path:
        path.write_text(text, "utf-8")
