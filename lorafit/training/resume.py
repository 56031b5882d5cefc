"""Where does an interrupted run go on? Its settings, its latest good checkpoint, and what may not have changed."""

from dataclasses import dataclass, replace
from pathlib import Path

from lorafit.atomic import put_back
from lorafit.config import COMMAND_FIELDS, SUPERVISOR_FIELDS, TrainConfig, what_fields
from lorafit.errors import ConfigError, RunError
from lorafit.events import Finished, Shrunk, read_events
from lorafit.hardware.detect import Machine, detect_machine
from lorafit.messages import _
from lorafit.planner import device_precision
from lorafit.planner.plan import Choice, Plan
from lorafit.run_folders.checkpoint import latest_good, step_of
from lorafit.run_folders.directory import RunDir, find_run, saved_config
from lorafit.training.loop import Progress

# May differ where a run goes on on another machine: what its base is called there, and in how many bits it fits.
MOVABLE = ("model_name", "quantization")


@dataclass(frozen=True)
class Interrupted:
    """A run to go on with: after `progress.done` steps, from `checkpoint` (None: from the start)."""

    run: RunDir
    checkpoint: Path | None
    progress: Progress
    bad: list[tuple[Path, str]]  # newer checkpoints that are damaged, and how


def interrupted(config: TrainConfig) -> Interrupted:
    """The run that `config.resume` names. Raises RunError when it is finished, or a what-setting differs."""
    run = find_run(config.resume or "latest", Path(config.output_dir))
    run.let_orphan_end()
    if any(isinstance(event, Finished) for event in read_events(run.events)):
        fix = _("Try it: {command}. To train it further, start a new run with --init_adapter {adapter}.")
        command = f"python inference.py --lora_weights {run.path} --interactive"
        raise RunError(
            _("This run is finished."), where=run.path, fix=fix.format(command=command, adapter=run.final_model)
        )
    refuse_changes(run, saved_config(run), config)
    checkpoint, bad = latest_good(run)
    done = (checkpoint and step_of(checkpoint)) or 0
    progress = Progress()
    for event in read_events(run.events):
        if event.step <= done or isinstance(event, Shrunk):  # what was too much once stays so
            progress.on_event(event)
    progress.done = done
    put_back(run.path)
    if (
        step_of(run.best_model) != progress.best_step
    ):  # it is of a step that is done anew, and may not be looked at again
        progress.best_step = progress.best_loss = None
    return Interrupted(run, checkpoint, progress, bad)


def refuse_other_state(old: Interrupted, config: TrainConfig) -> None:
    """Raise RunError when `old` is no longer how the run stands: another process wrote it until just now."""
    now = interrupted(config.model_copy(update={"resume": str(old.run.path)}))
    if (now.checkpoint, now.progress) != (old.checkpoint, old.progress):
        raise RunError(
            _("Another process went on with this run in the meantime."),
            where=old.run.path,
            found=_("it has done {now} steps, and had done {before}").format(
                now=now.progress.done, before=old.progress.done
            ),
            fix=_("Give the command again."),
        )


def refuse_changes(run: RunDir, saved: TrainConfig, config: TrainConfig) -> None:
    """Raise RunError when a setting that decides what is learned differs from the run's own.

    A run without a plan was only unpacked (unbundle.py): it may begin as one likes.
    """
    for name in what_fields() if run.plan.is_file() else []:
        before, now = getattr(saved, name), getattr(config, name)
        if before != now and not (name in MOVABLE and _other_machine(run, detect_machine())):
            raise _changed(run, name, before, now)


def refuse_other_data(run: RunDir, before: str, now: str) -> None:
    """Raise RunError when the data, as tokens, are no longer what the run was started with."""
    if before != now:
        raise _changed(run, "data_digest", before[:16], now[:16])


def _changed(run: RunDir, name: str, before: object, now: object) -> RunError:
    return RunError(
        _("A resumed run learns the same as before: `{name}` may not change.").format(name=name),
        where=run.path,
        found=_("it was {before}, now it is {now}").format(before=before, now=now),
        fix=_("Leave it as it was, or start a new run (with --init_adapter to go on from this one's weights)."),
    )


def plan_for(run: RunDir, machine: Machine, config: TrainConfig, fresh: Plan) -> Plan:
    """The run's own plan; on another machine, or with other how-settings, `fresh`, which was made for these."""
    if not run.plan.is_file():
        return fresh
    before = Plan.load(run.plan)
    refuse_other_data(run, before.data_digest, fresh.data_digest)
    if _other_machine(run, machine):
        return replace(fresh, choices=[*fresh.choices, *_moved(before, fresh)])
    return before if _how_settings(saved_config(run)) == _how_settings(config) else fresh


def _moved(before: Plan, now: Plan) -> list[Choice]:
    """What is said of a run that goes on elsewhere."""
    then = " ".join(bits for bits in (before.device, before.precision, before.quantization) if bits != "none")
    text = _("goes on from another machine, where it was {then}; plan made anew, learned state kept").format(then=then)
    if before.quantization != now.quantization:
        text = _(
            "⚠️  goes on from another machine, where it was {then}: from here on it learns with another base"
        ).format(then=then)
    return [Choice("moved", now.device, text)]


def as_before(run: RunDir, machine: Machine, config: TrainConfig) -> TrainConfig:
    """`config` with what "auto" became when `run` began: wherever it goes on, it learns the same.

    But for an optimizer that the device does not have: its moments are kept in a form that AdamW takes over.
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


def _other_machine(run: RunDir, machine: Machine) -> bool:
    try:
        before = Machine.from_json(run.machine.read_text("utf-8"))
    except (OSError, ValueError, TypeError, KeyError):
        return True
    same = ("system", "arch", "chip", "cores", "memory_bytes", "torch_version")
    return any(getattr(before, name) != getattr(machine, name) for name in same)
