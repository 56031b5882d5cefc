"""The notebook for Colab, Kaggle and Gradient: the same cells, with the differences in a NotebookPlatform.

The notebook keeps the installed PyTorch, finds the bundle, shows the plan for the GPU, trains with checkpoints in
persistent storage, and packs the result. The JSON is notebook format 4.5 (nbformat.readthedocs.io).
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafit.messages import _, listed, noted, translate
from lorafit.paths import write_for_user
from lorafit.transfer.cloud.base import CloudPackage

NAME = "lorafit.ipynb"
QUESTION = "公司拖欠工资怎么办？"

HELPERS = """\
import importlib.metadata, json, os, pathlib, shutil, signal, subprocess, sys, threading, zipfile

STORE = pathlib.Path(STORE)
OUTPUT = STORE / NAME
LORAFIT = [sys.executable, "-m", "lorafit"]


def run(*command, hours=None, good=(0,)):
    # Run a command with its output in this cell. After `hours`, or if you stop the cell, training saves and ends.
    plain = {**os.environ, "FORCE_COLOR": "", "TERM": "dumb"}
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True, errors="replace", bufsize=1, start_new_session=True, env=plain)
    timer = threading.Timer((hours or 0) * 3600, process.send_signal, [signal.SIGINT])
    if hours:
        timer.start()
    try:
        for line in process.stdout:
            print(line, end="")
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        print(process.stdout.read(), end="")
    finally:
        timer.cancel()
    if process.wait() not in good:
        raise RuntimeError(f"The command failed (exit code {process.returncode}); the reason is above.")


def find(pattern):
    paths = [path for place in (STORE, *PLACES) for path in pathlib.Path(place).glob(f"**/{pattern}")]
    return sorted({path.resolve() for path in paths if OUTPUT.resolve() not in path.resolve().parents},
                  key=lambda path: path.stat().st_mtime)
"""

TAKE = """\
if not find(BUNDLE) or (WHEEL.endswith(".whl") and not find(WHEEL)):
    upload()
bundle = find(BUNDLE)[-1]
print(bundle)
"""

# For platforms with an empty disk in every session: resume from the bundle with the highest step.
TAKE_FURTHEST = """\
def facts(path):
    if not zipfile.is_zipfile(path):
        return {"kind": None}
    with zipfile.ZipFile(path) as inside:
        return json.loads(inside.read("bundle.json")) if "bundle.json" in inside.namelist() else {"kind": None}


for inside in find("bundle.json"):  # the platform may have unpacked the zip: pack it again
    shutil.make_archive(STORE / f"again-{len(find('again-*.zip'))}", "zip", inside.parent)
bundles = [path for path in find("*.zip") if facts(path)["kind"] in ("begin", "go_on")]
bundle = max(bundles, key=lambda path: facts(path)["step"])
print(bundle, facts(bundle))
"""

INSTALL = """\
wheel = find(WHEEL)[-1] if WHEEL.endswith(".whl") else WHEEL
kept = STORE / "keep.txt"  # keep the PyTorch of this platform, which fits its driver
kept.write_text(f"torch=={importlib.metadata.version('torch')}\\n")
pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
run(*pip, "-c", kept, wheel)
run(*pip, "--no-deps", "--force-reinstall", wheel)  # replace an older wheel of the same version
"""

LOOK = """\
if shutil.which("nvidia-smi"):
    run("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv", good=range(256))
run(*LORAFIT, "plan", bundle, "--output_dir", OUTPUT, *FLAGS, good=(0, 2))
"""

TRAIN = """\
def finished():
    return list(OUTPUT.glob("*/final_model/adapter_config.json"))


if not finished():
    run(*LORAFIT, "train", bundle, "--output_dir", OUTPUT, *FLAGS, hours=HOURS, good=(0, 128 + signal.SIGINT))
RUN = sorted(OUTPUT.glob("*/config.yaml"))[-1].parent
print(RUN, "(finished)" if finished() else "(saved; the next session resumes from here)")
"""

TRY = """\
run(*LORAFIT, "chat", "--lora_weights", RUN, "--prompt", QUESTION, "--max_new_tokens", 200)
"""

PACK = """\
result = STORE / "result.zip"
run(*LORAFIT, "bundle", RUN, "-o", result)
"""

# Texts in the code of the cells, translated by _code().
NOTES = (
    noted(
        "Run a command with its output in this cell. After `hours`, or if you stop the cell, training saves and ends."
    ),
    noted("The command failed (exit code {process.returncode}); the reason is above."),
    noted("the platform may have unpacked the zip: pack it again"),
    noted("keep the PyTorch of this platform, which fits its driver"),
    noted("replace an older wheel of the same version"),
    noted("(finished)"),
    noted("(saved; the next session resumes from here)"),
)


@dataclass(frozen=True)
class NotebookPlatform:
    """The platform-specific parts of the notebook.

    `intro` is Markdown. Files in `store` persist between sessions. `places` are the folders where uploads may be.
    `opening`, `upload` and `closing` are Python code of cells. Training saves and stops after `hours`; None: never.
    `fresh` means that every session starts with an empty disk.
    """

    title: str
    intro: str
    store: str
    places: tuple[str, ...]
    opening: str
    upload: str
    closing: str
    hours: float | None = None
    fresh: bool = False
    notes: tuple[str, ...] = ()  # texts in the cells, marked by noted()


def write(place: NotebookPlatform, parcel: CloudPackage, folder: Path) -> Path:
    """Write the notebook of `place` into `folder` and return its path. Raises DiskError."""
    path = folder / NAME
    write_for_user(path, json.dumps(notebook(place, parcel), ensure_ascii=False, indent=1) + "\n", "--output")
    return path


def files(parcel: CloudPackage) -> str:
    """Return the names of the files to upload, as a list in the user's language."""
    return listed([parcel.bundle, parcel.install] if parcel.has_wheel else [parcel.bundle])


def notebook(place: NotebookPlatform, parcel: CloudPackage) -> dict[str, Any]:
    """Return the notebook as a JSON object."""
    cells = list(_cells(place, parcel))
    return {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "language_info": {"name": "python"},
            "accelerator": "GPU",
        },
        "cells": [{"id": f"cell-{number}", **cell} for number, cell in enumerate(cells)],
    }


def _cells(place: NotebookPlatform, parcel: CloudPackage) -> Iterable[dict[str, Any]]:
    yield _text(f"# lorafit: {place.title}\n\n{place.intro}")
    yield _code(_parameters(place, parcel), (), "parameters")
    notes = (*NOTES, *place.notes)
    yield _code(HELPERS, notes)
    yield _text(_("## Storage and files"))
    yield _code(place.opening, notes)
    yield _code(place.upload + "\n" + (TAKE_FURTHEST if place.fresh else TAKE), notes)
    yield _text(_("## Install (keeps the PyTorch of this platform)"))
    yield _code(INSTALL, notes)
    yield _text(_("## Plan for this GPU"))
    yield _code(LOOK, notes)
    yield _text(_("## Train or resume: run this cell again at any time, also in a new session"))
    yield _code(TRAIN, notes)
    yield _text(_("## Try the fine-tuned model"))
    yield _code(TRY, notes)
    yield _text(_("## Save the result; on your own machine: `lorafit fetch result.zip`"))
    yield _code(PACK + place.closing, notes)


def _parameters(place: NotebookPlatform, parcel: CloudPackage) -> str:
    store, places = _("kept after the session ends: checkpoints and results"), _("folders to search for uploaded files")
    flags, hours = _("more flags of `lorafit train`"), _("hours after which training saves and stops; `None`: no limit")
    return (
        f"STORE = {place.store!r}  # {store}\n"
        f"PLACES = {list(place.places)!r}  # {places}\n"
        f"NAME = {parcel.name!r}\nBUNDLE = {parcel.bundle!r}\nWHEEL = {parcel.install!r}\n"
        f"FLAGS = {parcel.flags!r}  # {flags}\n"
        f"HOURS = {place.hours!r}  # {hours}\n"
        f"QUESTION = {QUESTION!r}\n"
    )


def _text(source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": source.splitlines(keepends=True)}


def _code(source: str, notes: Iterable[str], *tags: str) -> dict[str, Any]:
    for note in notes:
        source = source.replace(note, translate(note))
    metadata = {"tags": list(tags)} if tags else {}
    lines = source.rstrip().splitlines(keepends=True)
    return {"cell_type": "code", "metadata": metadata, "source": lines, "outputs": [], "execution_count": None}
