"""Validation rows of a run: prepared again from its settings as in training, and checked against its plan."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lorafit.config import TrainConfig
from lorafit.data.conversation import Conversation
from lorafit.data.dataset import prepare_cached
from lorafit.data.store import SampleStore, digest
from lorafit.engines.tokenizer import read_template, shared_tokenizer
from lorafit.errors import RunError
from lorafit.messages import _
from lorafit.planner.plan import Plan
from lorafit.progress import ProgressCallback, exhaust
from lorafit.run_folders.directory import RunDir, saved_config
from lorafit.run_folders.origins import data_changes, data_origins


@dataclass(frozen=True)
class ValidationRows:
    """Rows that a run did not train on.

    `conversations` has one conversation per group of exact duplicates. Equal `samples` have an equal `digest`.
    """

    samples: SampleStore
    conversations: list[Conversation]
    digest: str


@dataclass(frozen=True)
class TrainedRun:
    """A run with its settings and its plan."""

    run: RunDir
    config: TrainConfig
    plan: Plan


def run_containing(adapter: Path) -> RunDir | None:
    """Return the run that contains `adapter`, or None.

    `adapter` is the run folder itself, or a folder one or two levels below it, such as final_model or checkpoints/step-....
    """
    path = adapter.absolute()
    folders = (path, path.parent, path.parent.parent)
    return next((run for run in map(RunDir, folders) if run.config.is_file() and run.plan.is_file()), None)


def read_trained(run: RunDir) -> TrainedRun:
    """Read the settings and the plan of `run`. Raises ConfigError or RunError."""
    return TrainedRun(run, saved_config(run), Plan.load(run.plan))


def load_validation_rows(
    trained: TrainedRun, model_folder: Path, trust_remote_code: bool, say: ProgressCallback
) -> ValidationRows:
    """Return the validation rows of a run.

    Raises RunError if the data differ from those of the training or if the run has no validation rows, and other
    LorafitErrors if the data cannot be read.
    """
    config, where = trained.config, trained.run.path
    template = read_template(config.chat_template)
    load = partial(shared_tokenizer, model_folder, template, trust_remote_code)
    data = exhaust(prepare_cached(config, model_folder, load, template), say)
    if data.digest != trained.plan.data_digest:
        raise RunError(
            _("The data changed after training, so the validation rows may include rows that were trained on."),
            where=where,
            found=data_changes(trained.run, data_origins(model_folder, data), (trained.plan.data_digest, data.digest)),
        )
    if not len(data.valid):
        raise RunError(_("The run has no validation rows."), where=where)
    return ValidationRows(data.valid, data.valid_conversations, digest(data.valid))
