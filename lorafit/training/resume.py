"""Resuming an interrupted run: its settings, its latest valid checkpoint, and the changes that are refused."""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from lorafit.atomic import restore_set_aside
from lorafit.config import COMMAND_FIELDS, SUPERVISOR_FIELDS, TrainConfig, what_fields
from lorafit.engines.tokenizer import read_template
from lorafit.errors import ConfigError, RunError
from lorafit.events import Finished, Shrunk, read_events
from lorafit.hardware.detect import Machine, detect_machine
from lorafit.messages import _, clauses
from lorafit.planner import device_precision
from lorafit.planner.plan import Choice, Plan
from lorafit.run_folders.checkpoint import latest_good, step_of
from lorafit.run_folders.directory import LATEST, RunDir, find_run, saved_config
from lorafit.run_folders.find_adapter import find_adapter
from lorafit.run_folders.origins import (
    PLACES,
    Origins,
    adapter_digest,
    base_changes,
    places,
    read_origins,
    template_digest,
)
from lorafit.training.loop import Progress
from lorafit.training.same_inputs import other_machine, refuse_other_data

# Settings that may differ on another machine: the base model's name there, and the quantization with which it fits.
MOVABLE_SETTINGS = ("model_name", "quantization")


@dataclass(frozen=True)
class Interrupted:
    """A run to resume after `progress.done` steps from `checkpoint` (None: from the start)."""

    run: RunDir
    checkpoint: Path | None
    progress: Progress
    bad: list[tuple[Path, str]]  # newer checkpoints that are damaged, each with the reason


def read_interrupted(config: TrainConfig) -> Interrupted:
    """Return the run that `config.resume` names.

    Raises RunError if the run is finished, or if a setting that decides what is learned differs.
    """
    run = find_run(config.resume or LATEST, Path(config.output_dir))
    run.wait_for_orphan()
    if any(isinstance(event, Finished) for event in read_events(run.events)):
        fix = _("To train it further, start a new run (--init_adapter {adapter}). Try the fine-tuned model: {command}")
        command = f"lorafit chat {shlex.quote(str(run.path))}"
        raise RunError(
            _("This run is finished."), where=run.path, fix=fix.format(command=command, adapter=run.final_model)
        )
    refuse_changes(run, saved_config(run), config)
    checkpoint, bad = latest_good(run)
    done = (checkpoint and step_of(checkpoint)) or 0
    progress = Progress()
    for event in read_events(run.events):
        if event.step <= done or isinstance(event, Shrunk):  # a lowered limit stays
            progress.on_event(event)
    progress.done = done
    restore_set_aside(run.path)
    if step_of(run.best_model) != progress.best_step:  # forget best_model: its step will be computed again
        progress.best_step = progress.best_loss = None
    return Interrupted(run, checkpoint, progress, bad)


def refuse_concurrent_resume(old: Interrupted, config: TrainConfig) -> None:
    """Raise RunError if the run is no longer in the state `old`: another process has resumed it meanwhile."""
    now = read_interrupted(config.model_copy(update={"resume": str(old.run.path)}))
    if (now.checkpoint, now.progress) != (old.checkpoint, old.progress):
        raise RunError(
            _("Another process resumed this run in the meantime."),
            where=old.run.path,
            found=_("steps done: {now}, previously {before}").format(now=now.progress.done, before=old.progress.done),
            fix=_("Run the command again."),
        )


def refuse_changes(run: RunDir, saved: TrainConfig, config: TrainConfig) -> None:
    """Raise RunError if a setting that decides what is learned differs between `saved` and `config`.

    A run without plan.json was only unpacked from a bundle (unbundle.py): all its settings may change.
    """
    for name in what_fields() if run.plan.is_file() else []:
        before, now = getattr(saved, name), getattr(config, name)
        if before == now or _may_have_another_name(run, name, before, config):
            continue
        if not (name in MOVABLE_SETTINGS and other_machine(run, detect_machine())):
            raise _changed(run, name, before, now)


def _may_have_another_name(run: RunDir, name: str, before: str | None, config: TrainConfig) -> bool:
    """Return whether the setting `name` may differ from `before`, because the content that it names decides.

    The content is compared here, or for the data and the base model once it is read.
    """
    now = getattr(config, name)
    if name not in PLACES or before is None or now is None:
        return False
    origins = read_origins(run)
    if name == "model_name":
        return origins is not None or _same_place(name, before, now)
    if name == "chat_template":  # a run without origins: the digest of the data, which the template renders, decides
        text = read_template(now) or ""
        return origins is None or template_digest(text) == origins.template or _same_place(name, before, now)
    if name == "init_adapter":
        folder = find_adapter(now, Path(config.output_dir))
        same = origins is not None and origins.adapter is not None and adapter_digest(folder) == origins.adapter
        return same or _same_place(name, before, str(folder))
    return True  # the digest of the data in the plan decides


def _same_place(setting: str, before: str, now: str) -> bool:
    found = [[path and path.resolve() for _name, path in places(setting, value)] for value in (before, now)]
    return None not in found[0] and found[0] == found[1]


def _changed(run: RunDir, name: str, before: object, now: object) -> RunError:
    return RunError(
        _("`{name}` cannot change when a run is resumed: the result must stay the same.").format(name=name),
        where=run.path,
        found=_("before: {before}; now: {now}").format(before=before, now=now),
        fix=_("Restore the previous value, or start a new run (with --init_adapter to start from this run's weights)."),
    )


def plan_for(run: RunDir, machine: Machine, config: TrainConfig, fresh: Plan, origins: Origins | None = None) -> Plan:
    """Return the run's own plan, or `fresh` on another machine or with other settings of how to compute.

    Raises RunError if the data have changed. `origins` are the present ones.
    """
    if not run.plan.is_file():
        return fresh
    before = Plan.load(run.plan)
    refuse_other_data(run, before.data_digest, fresh.data_digest, origins)
    if other_machine(run, machine):
        return replace(fresh, choices=[*fresh.choices, *_moved(before, fresh), *_other_base(run, origins)])
    return before if _how_settings(saved_config(run)) == _how_settings(config) else fresh


def _moved(before: Plan, now: Plan) -> list[Choice]:
    """Return the choice that tells the user that the run resumes on another machine."""
    then = " ".join(bits for bits in (before.device, before.precision, before.quantization) if bits != "none")
    text = _("resumed from another machine ({then} there); new plan, training state unchanged").format(then=then)
    if before.quantization != now.quantization:
        text = _(
            "⚠️  resumed from another machine ({then} there): from now on the base weights are quantized differently"
        ).format(then=then)
    return [Choice("moved", now.device, text)]


def _other_base(run: RunDir, now: Origins | None) -> list[Choice]:
    """Return the choice that tells the user that the base model's files differ from those at the start."""
    before = read_origins(run)
    lines = [*base_changes(before.base_files, now.base_files)] if before is not None and now is not None else []
    if not lines or now is None:
        return []
    text = _(
        "⚠️  the base model's files differ from those at the start ({files}): use another copy of the same model only"
    )
    return [Choice("base", now.base, text.format(files=clauses(lines)))]


def with_resolved_settings(run: RunDir, machine: Machine, config: TrainConfig) -> TrainConfig:
    """Return `config` with the quantization and optimizer that "auto" meant when `run` started.

    So a resumed run learns the same on any machine. A quantization that was changed since is kept. If the device lacks
    the optimizer, "auto" chooses another: AdamW can load the saved optimizer state.
    """
    if not run.plan.is_file():
        return config
    before, asked = Plan.load(run.plan), config.quantization
    bits = before.quantization if asked == saved_config(run).quantization else asked
    kept = config.model_copy(update={"quantization": bits, "optimizer": before.optimizer})
    try:
        device = device_precision.choose_device(config, machine).value
        device_precision.choose_optimizer(kept, device, device_precision.choose_engine(config, machine, device).value)
    except ConfigError:
        return kept.model_copy(update={"optimizer": "auto"})
    return kept


def _how_settings(config: TrainConfig) -> dict[str, object]:
    return config.model_dump(exclude={*what_fields(), *COMMAND_FIELDS, *SUPERVISOR_FIELDS, "output_dir", "demo"})
