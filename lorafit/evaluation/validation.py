"""Which rows did a run hold out? Rebuilt from its settings by what training uses, and checked against its plan."""

from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lorafit.config import TrainConfig
from lorafit.data.dataset import PreparedData, prepare_cached
from lorafit.data.formats import Conversation
from lorafit.data.store import SampleStore, digest
from lorafit.engines.tokenizer import read_template, shared_tokenizer
from lorafit.errors import RunError
from lorafit.messages import _
from lorafit.planner.plan import Plan
from lorafit.progress import Say
from lorafit.run_folders.directory import RunDir, saved_config


@dataclass(frozen=True)
class ValidationRows:
    """Rows that a run did not learn from; of equal ones `conversations` has one. Equal rows have an equal `digest`."""

    samples: SampleStore
    conversations: list[Conversation]
    digest: str


@dataclass(frozen=True)
class TrainedRun:
    """A run, and what it was trained by."""

    run: RunDir
    config: TrainConfig
    plan: Plan


def run_of(adapter: Path) -> RunDir | None:
    """The run that `adapter` is, or lies in: a run, its final_model, its checkpoints/step-...; None for any other folder."""
    path = adapter.absolute()
    folders = (path, path.parent, path.parent.parent)
    return next((run for run in map(RunDir, folders) if run.config.is_file() and run.plan.is_file()), None)


def read_trained(run: RunDir) -> TrainedRun:
    """What `run` was trained by. Raises ConfigError or RunError."""
    return TrainedRun(run, saved_config(run), Plan.load(run.plan))


def held_out_rows(trained: TrainedRun, model_folder: Path, trust_remote_code: bool, say: Say) -> ValidationRows:
    """The rows that the run held out. Raises LorafitErrors: the data are gone, or no longer what the run was trained with."""
    config, where = trained.config, trained.run.path
    template = read_template(config.chat_template)
    load = partial(shared_tokenizer, model_folder, template, trust_remote_code)
    data = _told(prepare_cached(config, model_folder, load, template), say)
    if data.digest != trained.plan.data_digest:
        raise RunError(
            _("The data are no longer what the run was trained with; rows that it has seen may be among the held-out."),
            where=where,
            found=f"{data.digest[:16]} != {trained.plan.data_digest[:16]}",
        )
    if not len(data.valid):
        raise RunError(_("The run held nothing out for validation."), where=where)
    return ValidationRows(data.valid, data.valid_conversations, digest(data.valid))


def _told(texts: Generator[str, None, PreparedData], say: Say) -> PreparedData:
    """What comes at the end; `say` gets what comes before."""
    while True:
        try:
            say(next(texts))
        except StopIteration as done:
            prepared: PreparedData = done.value
            return prepared
