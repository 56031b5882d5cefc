"""Runs of ten steps on lorafit's fake engine, for the tests of `lorafit runs`. Each takes less than a second."""

from pathlib import Path

from lorafit.config import TrainConfig, write_yaml
from lorafit.engines.base import Setup
from lorafit.engines.fake import FakeEngine
from lorafit.events import EventLog, Resumed, Started, StepDone
from lorafit.ipc.link import Link
from lorafit.planner.plan import Choice, Plan
from lorafit.run_folders.directory import RunDir
from lorafit.training.loop import Job, Progress, training_loop
from support import plans

SAMPLES = plans.make_samples(40)
CHOICES = [Choice("device", "cpu", "✓ No GPU found: training on the CPU"), Choice("steps", "10", "32 rows, 16 a step")]
ONE, TWO = "llama-lora-20260101_120000", "llama-lora-20260102_120000"


def make_job(run: RunDir, plan: Plan, link: Link | None = None) -> Job:
    """Return a job in `run`, with 32 training and 8 validation samples."""
    engine = FakeEngine(Setup(run.path, "fake", "cpu", "fp32", plan=plan))
    return Job(engine, SAMPLES[:32], SAMPLES[32:], run, plan, lambda _folder: None, link or Link())


def started(run: RunDir, plan: Plan) -> Started:
    """Return the event of the run's start."""
    return Started(
        run=str(run.path), model="demo", engine="fake", device="cpu", steps=plan.steps,
        train_samples=32, valid_samples=8, trainable_parameters=512,
    )  # fmt: skip


def make_run(output: Path, name: str = ONE, stop_after: int | None = None, **settings: object) -> RunDir:
    """Make a run of ten steps in `output`. With `stop_after`, the run stops after that step and is not resumed."""
    run = RunDir(output / name)
    run.path.mkdir(parents=True)
    write_yaml(TrainConfig(lora_r=8, effective_batch=16, **settings), run.config)  # type: ignore[arg-type]
    rate = settings.get("learning_rate", 1e-4)
    plan = plans.make_plan(eval_steps=3, save_steps=4, valid_samples=8, learning_rate=rate, choices=CHOICES)
    plan.save(run.plan)
    with EventLog(run.events) as log:
        log.write(started(run, plan))
        link = Link()
        for event in training_loop(make_job(run, plan, link), Progress()):
            log.write(event)
            if isinstance(event, StepDone) and event.step == stop_after:
                link.stop_signal = 15
    return run


def go_on(run: RunDir) -> None:
    """Resume a run that was stopped after its fifth step."""
    plan = Plan.load(run.plan)
    job = make_job(run, plan)
    job.engine.load(run.checkpoints / "step-000005")
    progress = Progress()
    progress.done = 5
    with EventLog(run.events) as log:
        log.write(Resumed(step=5, checkpoint="step-000005"))
        for event in training_loop(job, progress):
            log.write(event)
