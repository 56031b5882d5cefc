"""A run that another engine resumes, by the same interface that users have, ends like an uninterrupted run."""

from pathlib import Path

import pytest
from support import engine_variants, tiny

from lorafit.api import open_chat
from lorafit.config import TrainConfig
from lorafit.data.batching import build_step_batch
from lorafit.data.dataset import prepare
from lorafit.data.sources import read_rows
from lorafit.engines.tokenizer import load_tokenizer
from lorafit.evaluation.chat_request import ChatRequest
from lorafit.events import EvalDone, Saved, StepDone, read_events
from lorafit.run_folders.adapter import read_adapter
from lorafit.run_folders.directory import RunDir
from lorafit.training.worker import train_in_process

pytestmark = engine_variants.NO_MLX


@pytest.fixture(scope="module")
def base(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_chat_model(tmp_path_factory.mktemp("base"), demo_folder)


@pytest.fixture(scope="module")
def uninterrupted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A finished run of six steps on torch."""
    output = tmp_path_factory.mktemp("uninterrupted")
    list(train_in_process(TrainConfig(**settings(base, output), engine="torch")))  # type: ignore[arg-type]
    (folder,) = output.iterdir()
    return RunDir(folder)


def settings(base: Path, output: Path) -> dict[str, object]:
    return {
        "model_name": str(base), "dataset_name": "demo", "max_samples": 40, "val_size": 8.0, "max_length": 64,
        "max_steps": 6, "save_steps": 2, "eval_steps": 6, "effective_batch": 4, "learning_rate": 1e-3, "lora_r": 4,
        "lora_dropout": 0.1, "output_dir": str(output), "device": "cpu", "precision": "fp32",
    }  # fmt: skip


def train_until(config: TrainConfig, step: int) -> None:
    """Train until the checkpoint of `step` is saved, then stop without a normal end."""
    events = train_in_process(config)
    for event in events:
        if isinstance(event, Saved) and event.step == step:
            break
    events.close()  # type: ignore[attr-defined]


def result(run: RunDir) -> tuple[list[float], float, engine_variants.Arrays]:
    """Return the losses of all steps, the last validation loss and the adapter."""
    events = list(read_events(run.events))
    losses = {event.step: event.loss for event in events if isinstance(event, StepDone)}
    validation_loss = [event.loss for event in events if isinstance(event, EvalDone)][-1]
    return list(losses.values()), validation_loss, dict(read_adapter(run.final_model)[1])


def test_a_run_starts_on_torch_and_resumes_on_mlx_and_again_on_torch(
    base: Path, uninterrupted: RunDir, tmp_path: Path
) -> None:
    facts = settings(base, tmp_path)
    train_until(TrainConfig(**facts, engine="torch"), 2)  # type: ignore[arg-type]
    (folder,) = tmp_path.iterdir()
    train_until(TrainConfig(**facts, engine="mlx", resume=str(folder)), 4)  # type: ignore[arg-type]
    list(train_in_process(TrainConfig(**facts, engine="torch", resume=str(folder))))  # type: ignore[arg-type]
    engines = [event.engine for event in read_events(RunDir(folder).events) if event.name == "started"]  # type: ignore[attr-defined]
    assert engines == ["torch", "mlx", "torch"]
    losses, validation_loss, adapter = result(RunDir(folder))
    right_losses, right_validation_loss, right = result(uninterrupted)
    assert losses == pytest.approx(right_losses, rel=1e-5)
    assert validation_loss == pytest.approx(right_validation_loss, rel=1e-5)
    assert engine_variants.b_norm(adapter, right) < 1e-3


def test_mlx_answers_with_an_adapter_as_torch_does(uninterrupted: RunDir) -> None:
    adapter, answers = str(uninterrupted.path), []
    for engine in ("torch", "mlx"):
        request = ChatRequest(lora_weights=adapter, engine=engine, device="cpu", temperature=0.0, max_new_tokens=12)  # type: ignore[arg-type]
        chat = open_chat(request)
        answers.append([chat.answer("什么是合同？"), "".join(chat.reply("借款不还怎么办？"))])
    assert answers[0] == answers[1]


@pytest.mark.slow
def test_on_the_demo_model_loss_gradients_and_a_moved_run_are_those_of_torch(demo_folder: Path, tmp_path: Path) -> None:
    """The data are real rows. In this model's worst tensor, float32 differs from float64 by 3e-5."""
    config = TrainConfig(max_length=64, val_size=4.0)
    data = prepare(list(read_rows("demo", "train[:20]")), load_tokenizer(demo_folder), config)
    samples = list(data.train)
    plan = tiny.make_plan(
        effective_batch=4, train_samples=len(samples), token_budget=128, lora_r=8, loss_chunk=50, steps=6
    )
    torch_way, mlx_way = engine_variants.WAYS[0], next(way for way in engine_variants.WAYS if way.engine == "mlx")
    engine = torch_way.open(demo_folder, plan)
    adapter = engine_variants.start_with_b(engine, tmp_path / "adapter")
    del engine
    right, wanted = engine_variants.loss_and_gradients(torch_way, demo_folder, plan, adapter, tmp_path / "a", samples)
    loss, gradients = engine_variants.loss_and_gradients(mlx_way, demo_folder, plan, adapter, tmp_path / "b", samples)
    assert loss == pytest.approx(right, rel=1e-5)
    assert engine_variants.worst(gradients, wanted) < 1e-4
    validation = build_step_batch(data.valid, range(len(data.valid)), 128, 4096).micro_batches
    ends = []
    for legs in ([torch_way], [torch_way, mlx_way, torch_way]):
        for number, way in enumerate(legs):
            engine = way.open(demo_folder, plan)
            if number:
                engine.load(tmp_path)
            share = plan.steps // len(legs)
            engine_variants.run(engine, plan, range(number * share + 1, (number + 1) * share + 1), samples)
            engine.save(tmp_path)
        ends.append(engine.evaluate(validation).mean)
    assert ends[1] == pytest.approx(ends[0], rel=1e-3)
