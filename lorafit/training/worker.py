"""A run from config to events: find the model, read the data, plan, load, train.

This module writes all files of a run and prints nothing: every user interface reads the events.
"""

import os
import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from lorafit import registry
from lorafit.atomic import atomic_file, disk_errors
from lorafit.config import TrainConfig, write_yaml
from lorafit.data.dataset import PreparedData, prepare_cached, write_rejects
from lorafit.data.report import summary_lines
from lorafit.distributed.collectives import SINGLE_PROCESS, Collectives
from lorafit.distributed.launch import rank_info
from lorafit.engines import allocator
from lorafit.engines.base import Engine, Setup
from lorafit.engines.tokenizer import ChatTokenizer, read_template, shared_tokenizer
from lorafit.errors import LorafitError
from lorafit.evaluation.before_after import show_answers
from lorafit.events import Event, EventLog, Failed, Planned, Resumed, Shrunk, Stage, Started, Warned
from lorafit.hardware import detect
from lorafit.hardware.detect import Machine
from lorafit.ipc.link import Link, follow_order_file
from lorafit.ipc.protocol import Order, RunFolder
from lorafit.ipc.signals import StopRequests, handle_signals
from lorafit.messages import _, language
from lorafit.models.hub import FoundModel
from lorafit.models.spec import ModelSpec
from lorafit.paths import user_path
from lorafit.planner import calibrate
from lorafit.planner.data_stats import data_stats
from lorafit.planner.device_precision import choose_device, choose_engine
from lorafit.planner.effective_batch import resolve_effective_batch
from lorafit.planner.memory_budget import per_process
from lorafit.planner.plan import Plan
from lorafit.planner.planner import make_plan_result
from lorafit.run_folders import directory
from lorafit.run_folders.directory import RunDir
from lorafit.run_folders.origins import Origins, origins_of, with_absolute_paths
from lorafit.run_folders.place import RunPlace
from lorafit.training.initial_adapter import init_adapter, with_patterns, with_rank, with_targets
from lorafit.training.loop import Job, Progress, training_loop
from lorafit.training.model_card import add_chat_files
from lorafit.training.peft_check import check_adapter
from lorafit.training.preflight import (
    check_attention,
    check_model,
    check_positions,
    check_processes,
    check_settings,
    rank_notes,
)
from lorafit.training.progress import as_stage_events
from lorafit.training.resume import (
    Interrupted,
    plan_for,
    read_interrupted,
    refuse_concurrent_resume,
    with_resolved_settings,
)
from lorafit.training.same_inputs import (
    FullDigests,
    check_template_and_adapter,
    find_base,
    require_places,
    with_known_base,
)
from lorafit.training.warmup_probe import Prediction, compare_with_plan, run_probe


@dataclass(frozen=True)
class PreparedRun:
    """Everything that is prepared before the model is loaded; nothing is written yet."""

    config: TrainConfig
    machine: Machine
    model: FoundModel
    spec: ModelSpec
    tokenizer: ChatTokenizer
    data: PreparedData
    plan: Plan
    start: Path | None  # folder of the adapter to start from
    expected: Prediction
    origins: Origins
    ranks: Collectives = SINGLE_PROCESS


def train_in_process(config: TrainConfig, link: Link | None = None) -> Iterator[Event]:
    """Run the training that `config` describes in this process, and yield its events.

    `link` connects to the supervisor; without a supervisor only signals stop the run.
    Raises LorafitErrors; checkpoints that were saved before stay valid.
    """
    follows = link is None
    link = link or Link()
    with joined_processes(config, link) as ranks:
        yield from _lead(config.model_copy(update={"processes": ranks.own_rank.count}), link, ranks, follows)


@contextmanager
def joined_processes(config: TrainConfig, link: Link) -> Iterator[Collectives]:
    """Yield the group of processes that train together: torchrun's, those of --processes, or this process alone.

    Raises EngineError.
    """
    count = rank_info().count if "RANK" in os.environ else config.processes or 1
    if count == 1:
        yield SINGLE_PROCESS
        return
    with registry.load(registry.PROCESS_GROUP)(count, link.beat) as ranks:
        yield ranks


def _lead(config: TrainConfig, link: Link, ranks: Collectives, follows: bool) -> Iterator[Event]:
    """Prepare the run alone, send the orders to the other processes, and train with them.

    `follows`: read the user's orders from the run's folder, because no supervisor does.
    """
    old = None if config.resume is None else read_interrupted(config)
    ready = yield from _get_ready(config, old, ranks)
    if config.dry_run:
        yield from _plan_events(ready)
        ranks.broadcast_json(_orders(ready, None, old))
        yield from _open_engine(ready)
        return
    run = old.run if old else directory.create(Path(config.output_dir), ready.spec.model_type)
    progress = old.progress if old else Progress()
    try:
        with disk_errors(run.path), run.lock(link.owner):
            link.holds_run = True
            link.send(RunFolder(str(run.path.absolute())))
            if old is not None:
                refuse_concurrent_resume(old, config)
            with follow_order_file(link, run) if follows else nullcontext():
                yield from _logged(run, progress, _run(ready, run, old, progress, link))
    except BaseException:
        if old is None and progress.done == 0:  # no step is done, so there is nothing to resume
            directory.discard(run)
        raise


def _logged(run: RunDir, progress: Progress, events: Iterator[Event]) -> Iterator[Event]:
    """Yield `events`, each after it is written to the run's log. A LorafitError is logged as Failed."""
    with disk_errors(run.path), EventLog(run.events) as log:
        try:
            for event in events:
                with disk_errors(run.events):
                    log.write(event)
                yield event
        except LorafitError as error:
            failed = Failed(step=progress.done, text=str(error))
            with suppress(OSError):  # the error may be that the disk fails
                log.write(failed)
            if progress.done > 0:
                yield failed
            raise


def _get_ready(config: TrainConfig, old: Interrupted | None, ranks: Collectives) -> Generator[Event, None, PreparedRun]:
    machine = detect.detect_machine()
    detect.check_machine(machine)
    from_checkpoint = old is not None and old.checkpoint is not None
    if old is not None:
        config = with_known_base(old.run, old.checkpoint, config)
        require_places(old.run, config, needs_adapter=not from_checkpoint)
    start = None if from_checkpoint else init_adapter(config)
    if start is not None:  # the saved settings do not depend on the working directory, nor on which run is the latest
        config = with_rank(config.model_copy(update={"init_adapter": str(start.absolute())}), start)
    folder = old.run.path if old else Path(config.output_dir)
    check_settings(config, machine, folder)
    check_processes(config, machine, ranks.own_rank.local_count)
    device = choose_device(config, machine).value
    machine = _with_metal_limit(machine, device, choose_engine(config, machine, device).value)
    model, spec, base = yield from find_base(config, machine, old.run if old else None)
    if start is not None:
        config = with_targets(config, start, spec)
    check_model(config, spec, model.folder, folder)
    yield Stage(text=_("Reading {name}").format(name=config.dataset_name))
    template = read_template(config.chat_template)
    if old is not None:
        check_template_and_adapter(old.run, template, start)
    load = partial(shared_tokenizer, model.folder, template, config.trust_remote_code)
    data = yield from as_stage_events(prepare_cached(config, model.folder, load, template))
    if old is None:
        data.thoughts.check()
    origins = origins_of(model, base, data, template, start)
    stats = data_stats(data)
    notes = check_positions(config.model_name, spec, stats.longest_of_all)
    data = replace(data, notes=[*data.notes, *notes, *rank_notes(config.lora_r, config.lora_targets, spec)])
    share = per_process(machine, ranks.own_rank.local_count)
    known = calibrate.load_calibration(share, measure=calibrate.measure_matmul_gflops)
    settled = config if old is None else with_resolved_settings(old.run, machine, config)
    planned = make_plan_result(settled, share, spec, stats, known)
    plan = planned.plan
    if config.plan is not None:
        plan = plan.computed_as(Plan.load(user_path(config.plan)))
    adapter = start or (old and old.checkpoint)
    if adapter:
        plan = with_patterns(plan, adapter, new=start is not None)
    if old is not None:
        fresh, plan = plan, plan_for(old.run, machine, config, plan, origins)
        if plan is fresh:  # the old limits are those of another machine or other settings
            old.progress.token_budget = old.progress.recompute = None
    expected = Prediction(planned, known, plan)
    return PreparedRun(config, machine, model, spec, load(), data, plan, start, expected, origins, ranks)


def _with_metal_limit(machine: Machine, device: str, engine: str) -> Machine:
    """Return `machine` with the usable GPU memory that Metal reports; lorafit has no formula for it."""
    if device != "mps":
        return machine
    measured: int | None = registry.load(registry.USABLE_BYTES[engine])(device)
    if measured is not None:
        calibrate.save_metal_limit(machine, measured)
    return replace(
        machine, gpus=tuple(replace(g, available_bytes=measured) if g.kind == device else g for g in machine.gpus)
    )


def _plan_events(ready: PreparedRun) -> Iterator[Event]:
    if ready.tokenizer.uses_default_template:
        text = _("The model has no chat template: a plain one (ChatML) is used and saved next to the adapter.")
        yield Warned(text=text)
    for line in summary_lines(ready.data):
        yield Stage(text=line)
    for note in ready.data.notes:
        yield Warned(text=note)
    plan = ready.plan
    choices = [asdict(choice) for choice in plan.choices]
    yield Planned(choices=choices, predicted_peak_bytes=plan.predicted_peak_bytes, available_bytes=plan.available_bytes)


def _run(ready: PreparedRun, run: RunDir, old: Interrupted | None, progress: Progress, link: Link) -> Iterator[Event]:
    """Run the training in an empty or an interrupted run's folder to its end."""
    yield from _plan_events(ready)
    _write_facts(ready, run)
    ready.ranks.broadcast_json(_orders(ready, run, old))
    engine = yield from _open_engine(ready)
    if old is not None:
        yield from _restore(engine, ready.ranks, old)
    elif not ready.config.no_preflight and ready.ranks.own_rank.count == 1:
        ready = yield from _rehearsed(ready, run, engine)
    yield _started(ready, run, engine, progress.done)
    with stop_signals(link), FullDigests(run, ready.origins, ready.model.folder):
        training = training_loop(_job(ready, run, engine, link), progress)
        yield from compare_with_plan(training, ready.expected, whole=old is None and ready.ranks.own_rank.count == 1)
    if ready.config.demo and progress.done == ready.plan.steps and not ready.plan.shard:
        conversations, positions = ready.data.valid_conversations, ready.spec.positions
        tokenizer = ready.tokenizer.answering("as_trained", ready.data.thoughts.untrained)
        yield from show_answers(engine, tokenizer, positions, conversations, ready.config, progress.done)


def _rehearsed(ready: PreparedRun, run: RunDir, engine: Engine) -> Generator[Event, None, PreparedRun]:
    """Run the warm-up probe; return `ready` with the corrected plan, which is saved as the run's plan."""
    yield Stage(text=_("Preflight check: measuring a few micro-batches"))
    plan = yield from run_probe(engine, ready.data.train, ready.expected)
    with disk_errors(run.path), atomic_file(run.plan) as path:
        plan.save(path)
    return replace(ready, plan=plan, expected=replace(ready.expected, plan=plan))


def _orders(ready: PreparedRun, run: RunDir | None, old: Interrupted | None) -> dict[str, Any]:
    """Return the orders for the other processes (follower.py) as JSON. Without `run` they only open the engine."""
    return {
        "language": language(),
        "config": ready.config.model_dump(),
        "plan": asdict(ready.plan),
        "run": None if run is None else str(run.path.absolute()),
        "start": None if ready.start is None else str(ready.start.absolute()),
        "resumed": old is not None,
        "checkpoint": None if old is None or old.checkpoint is None else str(old.checkpoint.absolute()),
        "progress": asdict(old.progress if old else Progress()),
    }


def _write_facts(ready: PreparedRun, run: RunDir) -> None:
    effective = resolve_effective_batch(ready.config)
    changes = {"effective_batch": effective, "gradient_accumulation_steps": None, "output_dir": str(run.path.parent)}
    settled = with_absolute_paths(ready.config.model_copy(update=changes))
    with disk_errors(run.path):
        with atomic_file(run.config) as path:
            write_yaml(settled, path)
        with atomic_file(run.plan) as path:
            ready.plan.save(path)
        with atomic_file(run.machine) as path:
            path.write_text(ready.machine.to_json(), "utf-8")
        with atomic_file(run.origins) as path:
            ready.origins.save(path)
        write_rejects(run.rejects, ready.data.rejects)


def _open_engine(ready: PreparedRun) -> Generator[Event, None, Engine]:
    plan = ready.plan
    yield Stage(text=_("Loading the model on {device}").format(device=plan.device))
    engine = open_engine(ready.config, ready.model, plan, ready.ranks, ready.start)
    if engine.facts.longest_sample is not None:
        check_attention(ready.model.name, engine.facts.longest_sample, data_stats(ready.data).longest_of_all)
    yield Stage(text=_("✓ Model loaded on {device}").format(device=plan.device))
    for note in engine.facts.notes:
        yield Warned(text=note)
    return engine


def open_engine(config: TrainConfig, model: FoundModel, plan: Plan, ranks: Collectives, start: Path | None) -> Engine:
    """Open the engine that `plan` names, and load the adapter in `start` if there is one."""
    setup = Setup(
        folder=model.folder,
        model_name=model.name,
        device=plan.device,
        precision=plan.precision,
        quantization=plan.quantization,
        trust_remote_code=config.trust_remote_code,
        plan=plan,
        ranks=ranks,
    )
    allocator.set_profile(allocator.LOADING)
    engine: Engine = registry.load(registry.find_entry(registry.ENGINES, plan.engine)).open(setup)
    allocator.set_profile(plan.allocator)
    with ranks.broadcast_folder(start) as folder:
        if folder is not None:
            engine.load_adapter(folder)
    return engine


def load_checkpoint(engine: Engine, ranks: Collectives, checkpoint: Path | None) -> None:
    """Load the leader's `checkpoint` into the engine on every rank; None: load nothing."""
    with ranks.broadcast_folder(checkpoint) as folder:
        if folder is not None:
            engine.load(folder)


def _restore(engine: Engine, ranks: Collectives, old: Interrupted) -> Iterator[Event]:
    for path, fault in old.bad:
        text = _("The checkpoint {name} is damaged ({fault}); an older one is used.")
        yield Warned(step=old.progress.done, text=text.format(name=path.name, fault=fault))
    load_checkpoint(engine, ranks, old.checkpoint)
    name = old.checkpoint.name if old.checkpoint else ""
    done, budget, recompute = old.progress.done, old.progress.token_budget, old.progress.recompute
    yield Resumed(step=done, checkpoint=name)
    if recompute is not None:
        engine.set_recompute(recompute)
    if budget is not None or recompute is not None:
        text = _("Out of memory earlier: training continues with lower memory use.")
        yield Shrunk(step=done, text=text, token_budget=budget, recompute=recompute)


def _started(ready: PreparedRun, run: RunDir, engine: Engine, step: int) -> Started:
    plan = ready.plan
    return Started(
        step=step,
        run=str(run.path),
        model=ready.config.model_name,
        engine=plan.engine,
        device=plan.device,
        steps=plan.steps,
        train_samples=plan.train_samples,
        valid_samples=plan.valid_samples,
        trainable_parameters=engine.facts.trainable_parameters,
    )


def _job(ready: PreparedRun, run: RunDir, engine: Engine, link: Link) -> Job:
    def dress_folder(folder: Path) -> None:
        add_chat_files(folder, ready.config, ready.model.name, run.name, ready.tokenizer, ready.data.thoughts.untrained)

    place = RunPlace(run.path) if ready.ranks.own_rank.leads else None
    data, trusted = ready.data, ready.config.trust_remote_code
    check = partial(check_adapter, base=ready.model.folder, trust_remote_code=trusted, beat=link.beat)
    return Job(engine, data.train, data.valid, run, ready.plan, dress_folder, link, ready.ranks, place, check)


@contextmanager
def stop_signals(link: Link) -> Iterator[None]:
    """Turn a signal within the block into an order to stop, and a second one into haste; a third one ends the process.

    Ignored signals stay ignored: a child process leaves Ctrl-C to its supervisor.
    """
    requests = StopRequests()

    def note(number: int, _frame: FrameType | None) -> None:
        request = requests.hear()
        link.stop_signal = link.stop_signal or number
        if request == 2:
            link.take(Order("haste"))
        elif request > 2:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    with handle_signals(note, requests):
        yield
        if link.stop_signal:
            requests.hear()  # the supervisor's order: signals that come now are the same request
