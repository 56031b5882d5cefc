"""What can a user ask for? One function a verb; each returns data or events and prints nothing."""

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import tyro
from pydantic import BaseModel, ConfigDict, Field

from lorafit import registry
from lorafit.config import TrainConfig
from lorafit.data.findings import DataReport
from lorafit.data.report import make_report
from lorafit.data.sources import read_rows
from lorafit.diagnostics.examine import examine
from lorafit.diagnostics.finding import Report
from lorafit.distributed.launch import rank_info
from lorafit.engines.base import Engine, Setup
from lorafit.engines.tokenizer import load_tokenizer, read_template
from lorafit.errors import ConfigError, DataError
from lorafit.evaluation import compare_request
from lorafit.evaluation.chat import Chat
from lorafit.evaluation.compare import Comparison
from lorafit.evaluation.compare_request import CompareRequest
from lorafit.evaluation.model_request import AnswerRequest, base_name, choose_backend, tokenizer_folder
from lorafit.events import Event
from lorafit.hardware import detect, keep_awake
from lorafit.messages import _, listed
from lorafit.models.hub import find_model
from lorafit.models.spec import read_spec
from lorafit.planner import calibrate
from lorafit.planner.calibrate import Calibration
from lorafit.progress import ProgressCallback, ignore_progress
from lorafit.run_folders import directory, history
from lorafit.run_folders.adapter import ChatSettings, check_shapes, read_chat_settings
from lorafit.run_folders.directory import RunInfo
from lorafit.run_folders.history import Record
from lorafit.sampling import Sampling
from lorafit.supervisor.supervise import supervise
from lorafit.training.follower import follow
from lorafit.training.worker import train_in_process


def train(config: TrainConfig) -> Iterator[Event]:
    """Fine-tune as `config` says, or go on with a run (config.resume); what happens comes as events. Raises LorafitErrors."""
    if not rank_info().leads:
        return follow()
    alone = config.no_supervisor or "RANK" in os.environ  # torchrun has its own way of looking after processes
    with keep_awake.keep_awake():
        yield from train_in_process(config) if alone else supervise(config)


# chat


class ChatRequest(AnswerRequest):
    """Talk to a model, with the adapter of a run or as it is."""

    lora_weights: str | None = Field(
        None, description="A run, its final_model, or a checkpoint (None: the base model alone)."
    )
    interactive: bool = Field(
        False, description="Talk, question by question; what happens anyway without a prompt or test file."
    )
    prompt: str | None = Field(None, description="Answer this and stop; only the answer is printed.")
    test_file: str | None = Field(None, description="Answer this text file, a question a line, as JSON Lines.")
    output: str | None = Field(None, description="Where the answers to --test_file go (None: the terminal).")


def check_request(request: ChatRequest) -> None:
    """Raise ConfigError where `request` asks for two things at once."""
    asked = {"--interactive": request.interactive, "--prompt": request.prompt, "--test_file": request.test_file}
    given = [flag for flag, value in asked.items() if value not in (None, False)]
    if len(given) > 1:
        what = _("Only one of {flags} can be done at a time.").format(flags=listed(given))
        raise ConfigError(what, found=listed(given), fix=_("Leave all but one out."))
    if request.output is not None and request.test_file is None:
        fix = _("Give --test_file FILE too, or leave --output out.")
        raise ConfigError(_("--output is for the answers to --test_file."), found=request.output, fix=fix)


def open_chat(request: ChatRequest, say: ProgressCallback = ignore_progress) -> Chat:
    """A conversation with the model that `request` names. Raises LorafitErrors, the cheap ones before the model is loaded."""
    machine = detect.detect_machine()
    detect.check_machine(machine)
    adapter = None if request.lora_weights is None else directory.find_adapter(Path(request.lora_weights).expanduser())
    base = find_model(base_name(request, adapter), hub=request.hub, endpoint=request.hf_endpoint, say=say)
    spec = read_spec(base.folder)
    if adapter is not None:
        check_shapes(adapter, spec)
    way = choose_backend(request, machine, spec)
    settings = ChatSettings() if adapter is None else read_chat_settings(adapter)
    tokenizer = load_tokenizer(tokenizer_folder(adapter, base.folder), trust_remote_code=request.trust_remote_code)
    say(_("Loading {model} on {device} ...").format(model=base.name, device=way.device))
    engine: Engine = registry.load(registry.ENGINES[way.engine]).open(
        Setup(base.folder, base.name, way.device, way.precision, trust_remote_code=request.trust_remote_code)
    )
    if adapter is not None:
        engine.load_adapter(adapter)
    return Chat(
        engine,
        tokenizer,
        Sampling(request.temperature, request.top_p, request.max_new_tokens, request.seed),
        date_string=settings.date_string,
        system_prompt=request.system_prompt or settings.system_prompt,
        has_adapter=adapter is not None,
    )


def read_questions(path: Path) -> list[str]:
    """The questions in a text file, one a line, blank lines left out. Raises DataError."""
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            _("The questions cannot be read."),
            where=path,
            found=error,
            fix=_("Give a UTF-8 text file with one question a line."),
        ) from None
    if not any(lines):
        raise DataError(_("There is no question in this file."), where=path, fix=_("Write one question a line."))
    return [line for line in lines if line]


def answers(chat: Chat, questions: list[str]) -> Iterator[dict[str, str]]:
    """`question` and `answer` for each, every one asked afresh."""
    for question in questions:
        yield {"question": question, "answer": chat.answer(question)}


# compare


def compare(request: CompareRequest, say: ProgressCallback = ignore_progress) -> Comparison:
    """Base and adapters over the same held-out rows and questions. Raises LorafitErrors, the cheap ones first."""
    return compare_request.compare(request, read_questions, say)


# data


def _same(name: str) -> Any:
    """The setting of a training, to be asked for elsewhere too."""
    return copy.copy(TrainConfig.model_fields[name])


class DataRequest(BaseModel):
    """Look at data as a training would: formats, rejects, copies, lengths, and samples with what is learned marked."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    files: tyro.conf.Positional[list[str]] = Field([], description="Data files, folders, hub ids, or `demo`.")
    output: str | None = Field(None, description="Write the report as one HTML page; short: -o (None: the terminal).")
    model_name: str = Field("demo", description="Model whose tokenizer and template are used.")
    dataset_split: str = _same("dataset_split")
    max_samples: int | None = _same("max_samples")
    val_size: float = _same("val_size")
    max_length: int = _same("max_length")
    field_map: str | None = _same("field_map")
    context_field: str | None = _same("context_field")
    train_on: Literal["all", "last"] = _same("train_on")
    chat_template: str | None = _same("chat_template")
    system_prompt: str | None = _same("system_prompt")
    date_string: str = _same("date_string")
    seed: int = Field(42, description="Decides which rows are shown at random.", ge=0, lt=2**32)
    trust_remote_code: bool = _same("trust_remote_code")
    hub: Literal["huggingface", "modelscope"] = _same("hub")
    hf_endpoint: str | None = _same("hf_endpoint")
    lang: Literal["en", "zh"] | None = _same("lang")


def data(request: DataRequest, say: ProgressCallback = ignore_progress) -> DataReport:
    """What the data that `request` names is. Raises LorafitErrors, the cheap ones first."""
    if not request.files:
        fix = _("Name files, a hub id like `owner/name`, or `demo`: {command}").format(command="lorafit data FILE ...")
        raise ConfigError(_("Which data should be looked at?"), fix=fix)
    config = TrainConfig(**request.model_dump(exclude={"files", "output"}))
    names = ",".join(request.files)
    rows = read_rows(names, config.dataset_split, hub=config.hub, endpoint=config.hf_endpoint)
    model = find_model(config.model_name, hub=config.hub, endpoint=config.hf_endpoint, say=say)
    tokenizer = load_tokenizer(
        model.folder, template=read_template(config.chat_template), trust_remote_code=config.trust_remote_code
    )
    say(_("Reading {name}").format(name=names))
    return make_report(rows, tokenizer, config)


# runs


def runs(output_dir: Path) -> list[RunInfo]:
    """All runs in `output_dir`, the latest first."""
    return directory.list_runs(output_dir)


def run_record(name: str, output_dir: Path) -> Record:
    """Everything that the folder of the run called `name` tells. Raises RunError when there is none."""
    return history.read_record(directory.find_run(name, output_dir))


def remove_run(record: Record) -> None:
    """Delete a run's whole folder. Raises RunError for one that is written just now, and DiskError."""
    history.remove_run_folder(record)


# doctor


def doctor(output_dir: Path) -> Report:
    """Look at machine, packages, engines and places, and try what works. Nothing is changed."""
    return examine(output_dir)


def calibrations() -> Calibration:
    """What earlier runs measured on this machine, and plans rest on."""
    return calibrate.load_calibration(detect.detect_machine())
