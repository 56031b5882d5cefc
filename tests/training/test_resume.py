"""A resumed run starts from the state on disk and keeps its settings, also on another machine."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support import plans
from support.fake_jobs import make_job
from support.machines import CPU, M2_MAX, RTX_3090, cuda

from lorafit.atomic import atomic_folder
from lorafit.config import TrainConfig, write_yaml
from lorafit.engines.fake import FakeEngine
from lorafit.errors import RunError
from lorafit.events import EventLog, read_events
from lorafit.hardware.detect import Machine
from lorafit.planner.plan import Plan
from lorafit.run_folders.checkpoint import write_step
from lorafit.run_folders.directory import RunDir
from lorafit.training.loop import Job, Progress, training_loop
from lorafit.training.resume import plan_for, read_interrupted, refuse_concurrent_resume, with_resolved_settings


def make_run(folder: Path, plan: Plan, machine: Machine = CPU) -> RunDir:
    """Write a run's config, plan and machine into `folder`; the run has no step."""
    run = RunDir(folder)
    write_yaml(TrainConfig(output_dir=str(folder.parent)), run.config)
    plan.save(run.plan)
    run.machine.write_text(machine.to_json(), "utf-8")
    return run


def train_until(job: Job, progress: Progress, steps: int) -> None:
    """Train until the evaluation after `steps`; then leave the run as a train_until process would."""
    with EventLog(job.run.events) as log:
        for event in training_loop(job, progress):
            log.write(event)
            if event.step == steps and event.name == "eval":
                break


def test_a_best_model_of_a_step_that_is_computed_again_is_forgotten(tmp_path: Path) -> None:
    plan = plans.make_plan(eval_steps=3, save_steps=4, valid_samples=8)
    job = make_job(tmp_path / "run", plan)
    make_run(job.run.path, plan)
    train_until(job, Progress(), 6)  # best_model is of step 6, which replaced step 3; the last checkpoint is of step 4
    config = TrainConfig(output_dir=str(tmp_path), resume=str(job.run.path))
    old = read_interrupted(config)
    assert old.progress.done == 4
    assert old.progress.best_step is None
    assert isinstance(job.engine, FakeEngine)
    assert old.checkpoint is not None
    job.engine.load(old.checkpoint)
    list(training_loop(replace(job, plan=replace(plan, eval_steps=0)), old.progress))
    assert old.progress.best_step == 10
    state = json.loads((job.run.best_model / "state.json").read_text())
    assert state == {"step": 10}


def test_a_best_model_that_is_still_the_best_is_kept(tmp_path: Path) -> None:
    plan = plans.make_plan(eval_steps=3, save_steps=4, valid_samples=8)
    job = make_job(tmp_path / "run", plan)
    make_run(job.run.path, plan)
    train_until(job, Progress(), 3)
    with atomic_folder(job.run.checkpoints / "step-000003") as folder:
        write_step(folder, 3)
    assert read_interrupted(TrainConfig(output_dir=str(tmp_path), resume=str(job.run.path))).progress.best_step == 3


def test_the_value_chosen_for_auto_is_kept_on_another_machine(tmp_path: Path) -> None:
    config = TrainConfig()
    run = make_run(tmp_path, plans.make_plan(quantization="none", optimizer="adamw"), M2_MAX)
    kept = with_resolved_settings(run, cuda(RTX_3090), config)
    assert (kept.quantization, kept.optimizer) == ("none", "adamw")
    run = make_run(tmp_path, plans.make_plan(quantization="4bit", optimizer="paged_adamw_8bit"), cuda(RTX_3090))
    kept = with_resolved_settings(run, M2_MAX, config)
    assert (kept.quantization, kept.optimizer) == ("4bit", "auto")  # MPS has no 8-bit optimizer


def test_the_plan_is_made_again_on_another_machine_and_kept_on_the_same(tmp_path: Path) -> None:
    config = TrainConfig(output_dir=str(tmp_path.parent))
    before, fresh = plans.make_plan(token_budget=256), plans.make_plan(token_budget=512)
    run = make_run(tmp_path, before)
    assert plan_for(run, CPU, config, fresh).token_budget == 256
    assert (
        plan_for(run, cuda(RTX_3090), config, fresh).token_budget == 256
    )  # only chip, memory and PyTorch are compared
    assert plan_for(run, M2_MAX, config, fresh).token_budget == 512
    with pytest.raises(RunError, match="training data have changed"):
        plan_for(run, CPU, config, plans.make_plan(data_digest="other"))


def test_a_run_that_another_process_resumed_in_the_meantime_is_refused(tmp_path: Path) -> None:
    plan = plans.make_plan(eval_steps=3, save_steps=4, valid_samples=8)
    job = make_job(tmp_path / "run", plan)
    make_run(job.run.path, plan)
    progress = Progress()
    train_until(job, progress, 6)
    config = TrainConfig(output_dir=str(tmp_path), resume="latest")
    old = read_interrupted(config)
    refuse_concurrent_resume(old, config)
    with atomic_folder(job.run.checkpoints / "step-000006") as folder:
        write_step(folder, 6)
    with pytest.raises(RunError, match="in the meantime"):
        refuse_concurrent_resume(old, config)
    assert read_events(job.run.events)[-1].step == 6
