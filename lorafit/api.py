"""The functions of lorafit: one for each thing that a user can ask for. Each returns data or events and prints nothing.

Every function raises LorafitError for what a user can fix, before it writes or loads anything where that is possible. The
tests run the examples of the docstrings one after another in one folder. A function imports what it needs when it is called, so
that `lorafit plan` does not load the code of training, chat and transfer.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lorafit.messages import _
from lorafit.progress import ProgressCallback, ignore_progress

if TYPE_CHECKING:
    from lorafit.config import TrainConfig
    from lorafit.data.findings import DataReport
    from lorafit.data.report_request import DataRequest
    from lorafit.diagnostics.finding import Report
    from lorafit.evaluation.chat import Chat
    from lorafit.evaluation.chat_request import ChatRequest
    from lorafit.evaluation.compare import Comparison
    from lorafit.evaluation.compare_request import CompareRequest
    from lorafit.events import Event
    from lorafit.exporters.base import ExportRequest
    from lorafit.exporters.export import Exported
    from lorafit.exporters.verify import Verified
    from lorafit.hardware.catalogue.catalogue import Catalogue
    from lorafit.planner.calibrate import Calibration
    from lorafit.planner.table import GuideTime, ModelOnMachine
    from lorafit.run_folders.directory import RunDir, RunInfo
    from lorafit.run_folders.history import Record
    from lorafit.training.preview import Preview
    from lorafit.transfer.bundle import BundleInfo
    from lorafit.transfer.cloud.send import CloudFiles, CloudOrder
    from lorafit.transfer.fetch import Fetched

OUTPUT = Path("output")  # the default folder of runs


def plan(config: "TrainConfig", machine: str | None = None, say: ProgressCallback = ignore_progress) -> "Preview":
    """Return the plan for `config` with its memory, time and reasons, for the machine named `machine` (None: this one).

    Example::

        import lorafit

        config = lorafit.TrainConfig(model_name="demo", dataset_name="demo", max_samples=24, max_steps=2)
        preview = lorafit.plan(config, "M1 Pro 16GB")
        print(preview.plan.token_budget, preview.planned.estimate)
    """
    from lorafit.training.preview import preview_run

    return preview_run(config, machine, say)


def plan_table(config: "TrainConfig") -> "tuple[list[ModelOnMachine], list[GuideTime]]":
    """Return which machine trains which model in what time, and the times of the macOS guide beside lorafit's.

    Example::

        from lorafit import api

        models, guide = api.plan_table(lorafit.TrainConfig())
    """
    from lorafit.planner import table

    return table.cells(config), table.times(config)


def machines() -> "Catalogue":
    """Return the chips, CPUs and cloud machines that a plan can be made for.

    Example::

        print([chip.name for chip in api.machines().chips])
    """
    from lorafit.hardware.catalogue import catalogue

    return catalogue.read_catalogue()


def train(config: "TrainConfig") -> "Iterator[Event]":
    """Fine-tune as `config` says, or resume the run `config.resume`, and yield the events of the run.

    The training runs in a process of its own, which is restarted after a crash (`config.no_supervisor`: in this process).

    Example::

        config = lorafit.TrainConfig(
            model_name="demo", dataset_name="demo", max_samples=24, max_steps=2, effective_batch=2, max_length=128, lora_r=4
        )
        for event in lorafit.train(config):
            if event.name == "finished":
                print(event.valid_loss_after)
    """
    from lorafit.distributed.launch import rank_info
    from lorafit.hardware.keep_awake import keep_awake
    from lorafit.supervisor.supervise import supervise
    from lorafit.training.follower import follow
    from lorafit.training.worker import train_in_process

    if not rank_info().leads:
        return follow()
    alone = config.no_supervisor or "RANK" in os.environ  # torchrun supervises its processes itself
    with keep_awake():
        yield from train_in_process(config) if alone else supervise(config)


def runs(output_dir: Path = OUTPUT) -> "list[RunInfo]":
    """Return all runs in `output_dir`, the newest first.

    Example::

        from pathlib import Path

        newest = lorafit.runs(Path("output"))[0]
        print(newest.name, newest.state)
    """
    from lorafit.run_folders import directory

    return directory.list_runs(output_dir)


def run_record(name: str, output_dir: Path = OUTPUT) -> "Record":
    """Return what the folder of a run holds: settings, plan, events. `name`: the run's name or folder, or "latest".

    Example::

        record = api.run_record("latest")
        print(record.info.state, record.bytes)
    """
    from lorafit.run_folders import directory, history

    return history.read_record(directory.find_run(name, output_dir))


def check_removable(record: "Record") -> None:
    """Raise RunError if the run must not be removed: it is being written, or other files are in its folder.

    Example::

        api.check_removable(api.run_record("latest"))
    """
    from lorafit.run_folders import history

    history.check_removable(record)


def remove_run(record: "Record") -> None:
    """Delete the run's whole folder. Raise RunError for a run that is being written.

    Example::

        import shutil

        shutil.copytree(f"output/{newest.name}", "output/copy")
        api.remove_run(api.run_record("copy"))
    """
    from lorafit.run_folders import history

    history.remove_run_folder(record)


def order_run(name: str, order: str, output_dir: Path = OUTPUT, wait_seconds: float = 15.0) -> "Event | None":
    """Order the running training `name` to "stop", "pause" or "continue", and return the event that acknowledges it.

    It is obeyed after the step or evaluation in progress; None: not within `wait_seconds`. Raises RunError for a run that
    is not running.

    Example::

        try:
            api.order_run(newest.name, "pause")
        except lorafit.errors.RunError as error:
            print(error.what, error.fix)
    """
    from lorafit.run_folders import directory, orders

    run, since = directory.find_run(name, output_dir), time.time()
    orders.write_order(run, order)
    deadline = time.monotonic() + wait_seconds
    while (found := orders.acknowledgement(run, order, since)) is None and time.monotonic() < deadline:
        time.sleep(orders.POLL_SECONDS / 4)
    return found


def open_chat(request: "ChatRequest", say: ProgressCallback = ignore_progress) -> "Chat":
    """Load the model and the adapter that `request` names, and return a chat with it.

    Example::

        chat = lorafit.open_chat(lorafit.ChatRequest(lora_weights=f"output/{newest.name}", max_new_tokens=8))
        print(chat.answer("试用期可以不交社保吗？"))
    """
    from lorafit.evaluation import chat_request

    return chat_request.open_chat(request, say)


def compare(request: "CompareRequest", say: ProgressCallback = ignore_progress) -> "Comparison":
    """Compare a base model and its adapters: validation loss of each, and answers to the same questions.

    Example::

        request = lorafit.CompareRequest(adapters=[f"output/{newest.name}"], prompt="你好", max_new_tokens=8)
        comparison = lorafit.compare(request)
        print(comparison.tuned[0].losses)
    """
    from lorafit.evaluation import compare_request

    return compare_request.compare(request, say)


def export(request: "ExportRequest", say: ProgressCallback = ignore_progress) -> "Exported":
    """Write an adapter, or its base model with the adapter merged into it, for other programs, with a certificate.

    Example::

        from lorafit.exporters.base import ExportRequest

        exported = api.export(ExportRequest(run=[f"output/{newest.name}"], to="merged", dtype="fp32", output="merged"))
        print(exported.folder, exported.certificate.forms)
    """
    from lorafit.exporters import export as exporting

    return exporting.export(request, say)


def verify_export(
    folder: Path, request: "ExportRequest | None" = None, say: ProgressCallback = ignore_progress
) -> "Verified":
    """Check an export by its certificate: the digest of each file, and the token IDs of its chat template.

    If `request` names the run of the export, its answers are measured again.

    Example::

        print(api.verify_export(Path("merged")).files)
    """
    from lorafit.exporters import verify
    from lorafit.exporters.base import ExportRequest

    return verify.verify_export(folder, request or ExportRequest.model_validate({}), say)


def data_report(request: "DataRequest", say: ProgressCallback = ignore_progress) -> "DataReport":
    """Report on data as a training would read it: formats, rejected rows, duplicates, lengths, tokens in the loss.

    Example::

        report = lorafit.data_report(lorafit.DataRequest(files=["demo"], max_samples=24))
        print(report.rows, report.duplicates.exact)
    """
    from lorafit.data.hub_data import Subset
    from lorafit.data.report import make_report
    from lorafit.data.sources import open_source
    from lorafit.engines.tokenizer import load_tokenizer, read_template
    from lorafit.errors import ConfigError
    from lorafit.models.hub import find_model

    names = request.data_names
    if not names:
        fix = _("Give data files, a dataset ID like `owner/name`, or `demo`: {command}").format(
            command="lorafit data FILE ..."
        )
        raise ConfigError(_("No data given."), fix=fix)
    config = request.as_config()
    source = open_source(
        names,
        config.dataset_split,
        hub=config.hub,
        endpoint=config.hf_endpoint,
        encoding=config.encoding,
        subset=Subset(config.dataset_subset),
    )
    model = find_model(config.model_name, hub=config.hub, endpoint=config.hf_endpoint, say=say)
    tokenizer = load_tokenizer(
        model.folder, template=read_template(config.chat_template), trust_remote_code=config.trust_remote_code
    )
    say(_("Reading {name}").format(name=names))
    report = make_report(source.rows(), tokenizer, config, all_samples=request.json)
    return replace(report, reading_notes=list(source.reading.notes))


def bundle(
    target: Path, run: str | None = None, config: "TrainConfig | None" = None, output_dir: Path = OUTPUT
) -> "BundleInfo":
    """Pack `run`, or for None a new run with `config`, into the zip `target` for another machine.

    There `lorafit train` starts or resumes it; a finished run is imported by `fetch`.

    Example::

        api.bundle(Path("run.zip"), newest.name)
    """
    from lorafit.transfer import bundle as bundles

    found, settings = _run_or_config(run, config, output_dir)
    return bundles.bundle(found, settings, target)


def cloud(place: str, folder: Path, order: "CloudOrder", say: ProgressCallback = ignore_progress) -> "CloudFiles":
    """Write into `folder` what the platform `place` (a name in registry.CLOUDS) needs to train `order`.

    Example::

        order = api.cloud_order(config=config)
        print(api.cloud("colab", Path("cloud"), order).files)
    """
    from lorafit.transfer.cloud.send import send

    return send(place, order, folder, say)


def cloud_order(
    run: str | None = None,
    config: "TrainConfig | None" = None,
    output_dir: Path = OUTPUT,
    base_model: str | None = None,
) -> "CloudOrder":
    """Return the order for `cloud`: the run named `run`, or for None a new run with `config`.

    `base_model` is the name of the base model on the platform, if it is a local folder here.

    Example::

        order = api.cloud_order(config=config)
    """
    from lorafit.transfer.cloud.send import CloudOrder

    return CloudOrder(*_run_or_config(run, config, output_dir), base_model)


def fetch(path: Path, output_dir: Path = OUTPUT) -> "list[Fetched]":
    """Import all runs in `path`, a zip, tar.gz or folder from another machine, into `output_dir`.

    A damaged run raises RunError, and nothing of it is imported.

    Example::

        (fetched,) = api.fetch(Path("run.zip"), Path("fetched"))
        print(fetched.run.path, fetched.finished)
    """
    from lorafit.transfer import fetch as fetching

    return fetching.fetch(path, output_dir)


def doctor(output_dir: Path = OUTPUT) -> "Report":
    """Examine the machine, the packages, the engines and the folders, and test what works. Nothing is changed.

    Example::

        print([finding.what for finding in lorafit.doctor().findings if finding.mark == "bad"])
    """
    from lorafit.diagnostics import examine

    return examine.examine(output_dir)


def calibrations() -> "Calibration":
    """Return what earlier runs measured on this machine, and the plans use.

    Example::

        print(api.calibrations().core_gflops)
    """
    from lorafit.hardware import detect
    from lorafit.planner import calibrate

    return calibrate.load_calibration(detect.detect_machine())


def _run_or_config(
    run: str | None, config: "TrainConfig | None", output_dir: Path
) -> "tuple[RunDir | None, TrainConfig]":
    """Return the run with its saved settings, or None with `config`."""
    from lorafit.config import TrainConfig
    from lorafit.run_folders import directory

    if run is None:
        return None, config or TrainConfig()
    found = directory.find_run(run, output_dir)
    return found, directory.saved_config(found)
