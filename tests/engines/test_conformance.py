"""Every engine equals transformers and peft in float64 on every model family, and follows the Engine protocol."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support import engine_variants, float64_reference, tiny
from support.engine_variants import SAMPLES, Way, every_way, every_way_and_the_fake

from lorafit.data.micro_batch import MicroBatch, pack
from lorafit.engines.base import OutOfMemory
from lorafit.errors import ModelError
from lorafit.planner.plan import Plan
from lorafit.sampling import Sampling

PLAN = tiny.make_plan(token_budget=100)
# Without torch's generic path: with both paths of torch, transformers' model generates the answers.
GENERATING_WAYS = [way for way in engine_variants.WAYS if way is not engine_variants.WAYS[1]]
# Limits of the gradient's error where transformers and peft in float32 have 3e-5 and 9e-5 themselves.
LIMITS = {"qwen3.5, gated delta rule": 5e-5, "gemma4, shared keys, two head widths": 9e-5}
TWO_CASES = ["llama, tied, grouped heads", "gemma2, soft caps, window"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of a random model of each case."""
    root = tmp_path_factory.mktemp("models")
    return {
        case: tiny.save_model(family, root / str(number), **changes)
        for number, (case, (family, changes)) in enumerate(engine_variants.CASES.items())
    }


@pytest.fixture(scope="module")
def float64_results(
    models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, float64_reference.Wanted]]:
    """For each case an adapter, and the loss and gradients with it in float64."""
    found = {}
    for case, folder in models.items():
        engine = engine_variants.WAYS[0].open(folder, PLAN)
        adapter = engine_variants.start_with_b(engine, tmp_path_factory.mktemp("adapter"))
        found[case] = adapter, float64_reference.reference(folder, adapter, PLAN, SAMPLES)
    return found


@every_way
@pytest.mark.parametrize("case", engine_variants.CASES)
def test_loss_and_gradients_equal_those_of_transformers_and_peft_in_float64(
    way: Way,
    case: str,
    models: dict[str, Path],
    float64_results: dict[str, tuple[Path, float64_reference.Wanted]],
    tmp_path: Path,
) -> None:
    adapter, right = float64_results[case]
    if not way.has(case):
        with pytest.raises(ModelError, match="MLX cannot load"):
            way.open(models[case], PLAN)
        return
    loss, gradients = engine_variants.loss_and_gradients(way, models[case], PLAN, adapter, tmp_path)
    assert loss == pytest.approx(right.loss, rel=2e-6)
    assert engine_variants.worst(gradients, right.gradients) < LIMITS.get(case, 2e-5)


@every_way
@pytest.mark.parametrize("case", TWO_CASES)
def test_how_it_is_computed_changes_nothing(way: Way, case: str, models: dict[str, Path], tmp_path: Path) -> None:
    plan = dataclasses.replace(PLAN, lora_dropout=0.1)
    loss, gradients = engine_variants.loss_and_gradients(way, models[case], plan, None, tmp_path / "plain")
    for name, value in {"token_budget": 4096, "max_micro_batch": 1, "recompute": 2, "loss_chunk": 100}.items():
        other = dataclasses.replace(plan, **{name: value})
        other_loss, other_gradients = engine_variants.loss_and_gradients(
            way, models[case], other, None, tmp_path / name
        )
        assert other_loss == pytest.approx(loss, rel=1e-6), name
        assert engine_variants.worst(other_gradients, gradients) < 1e-5, name


@pytest.fixture(scope="module")
def dropout_step(
    models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Plan, float, engine_variants.Arrays]:
    """A plan with dropout, and the loss and gradients of its first step by the first way."""
    plan = dataclasses.replace(PLAN, lora_dropout=0.3)
    return plan, *engine_variants.loss_and_gradients(
        engine_variants.WAYS[0], models[TWO_CASES[0]], plan, None, tmp_path_factory.mktemp("dropout")
    )


@every_way
def test_dropout_is_the_same_on_every_engine(
    way: Way, models: dict[str, Path], dropout_step: tuple[Plan, float, engine_variants.Arrays], tmp_path: Path
) -> None:
    plan, loss, gradients = dropout_step
    other_loss, other_gradients = engine_variants.loss_and_gradients(way, models[TWO_CASES[0]], plan, None, tmp_path)
    assert other_loss == pytest.approx(loss, rel=1e-6)
    assert engine_variants.worst(other_gradients, gradients) < 1e-5


@every_way_and_the_fake
def test_a_saved_and_loaded_engine_continues_with_equal_bits(way: Way, models: dict[str, Path], tmp_path: Path) -> None:
    plan, folder = dataclasses.replace(PLAN, lora_dropout=0.1), models[TWO_CASES[0]]
    straight = way.open(folder, plan)
    engine_variants.run(straight, plan, range(1, 5))
    half = way.open(folder, plan)
    engine_variants.run(half, plan, range(1, 3))
    (tmp_path / "half").mkdir()
    half.save(tmp_path / "half")
    other = way.open(folder, plan)
    other.load(tmp_path / "half")
    engine_variants.run(other, plan, range(3, 5))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    straight.save(tmp_path / "a")
    other.save(tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


@every_way
@pytest.mark.parametrize("case", TWO_CASES)
def test_evaluation_equals_transformers_loss_without_dropout(
    way: Way, case: str, models: dict[str, Path], float64_results: dict[str, tuple[Path, float64_reference.Wanted]]
) -> None:
    adapter, _right = float64_results[case]
    engine = way.open(models[case], dataclasses.replace(PLAN, lora_dropout=0.5))
    engine.load_adapter(adapter)
    samples = SAMPLES[:5]
    found = engine.evaluate([pack(samples, range(5), range(5))])
    model = float64_reference.peft_model(models[case], adapter, trainable=False)
    with torch.no_grad():
        right = sum(float64_reference.sample_loss(model, sample).item() for sample in samples)
    assert found.num_targets == sum(s.num_targets for s in samples)
    assert found.loss_sum == pytest.approx(right, rel=2e-6)
    engine.set_adapter(False)
    with torch.no_grad(), model.disable_adapter():  # type: ignore[operator]
        base = sum(float64_reference.sample_loss(model, sample).item() for sample in samples)
    assert engine.evaluate([pack(samples, range(5), range(5))]).loss_sum == pytest.approx(base, rel=2e-6)
    assert abs(base - right) > 1e-3


PROMPT = list(range(5, 25))


@pytest.fixture(scope="module")
def float64_answer(models: dict[str, Path]) -> Callable[[str], list[int]]:
    """A function that returns transformers' greedy answer to PROMPT in float64, without a KV cache, for a case."""

    @functools.cache
    def answer(case: str) -> list[int]:
        model = transformers.AutoModelForCausalLM.from_pretrained(models[case], attn_implementation="eager")
        model = model.double().eval()
        ids = torch.tensor([PROMPT])
        for _i in range(6):
            with torch.no_grad():
                ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        found: list[int] = ids[0, len(PROMPT) :].tolist()
        return found

    return answer


def generating(cases: Iterable[str]) -> pytest.MarkDecorator:
    """Parametrize a test with every engine that generates and those of `cases` that it can open."""
    pairs = [(way, case) for way in GENERATING_WAYS for case in cases if way.has(case)]
    return pytest.mark.parametrize(("way", "case"), pairs, ids=[f"{way.name}-{case}" for way, case in pairs])


@generating([c for c in engine_variants.CASES if "experts" not in c and "long rope" not in c])
def test_greedy_answers_with_a_cache_equal_those_without(
    way: Way, case: str, models: dict[str, Path], float64_answer: Callable[[str], list[int]]
) -> None:
    engine = way.open(models[case], None)
    found = list(engine.generate(PROMPT, Sampling(temperature=0.0, max_new_tokens=6)))
    assert found == float64_answer(case)


@generating(engine_variants.CASES)
def test_prompts_answered_together_get_the_answers_that_each_gets_alone(
    way: Way, case: str, models: dict[str, Path]
) -> None:
    engine = way.open(models[case], None)
    prompts = [list(range(5, 8 + 3 * (7 * n % 11))) for n in range(11)]
    free = Sampling(temperature=0.0, max_new_tokens=8)

    def alone(sampling: Sampling) -> list[list[int]]:
        return [list(engine.generate(prompt, sampling)) for prompt in prompts]

    def together(sampling: Sampling) -> dict[int, list[int]]:
        return {place: ids for done in engine.answers(prompts, sampling) for place, ids in done.items()}

    without_stops = alone(free)
    assert together(free) == dict(enumerate(without_stops))
    stops = frozenset(answer[place] for place, answer in enumerate(without_stops[:3], 2))
    short = dataclasses.replace(free, max_tokens=max(map(len, prompts)) + 2)  # each prompt leaves another room
    assert len({len(answer) for answer in alone(short)}) > 1
    for sampling in (short, dataclasses.replace(free, stop_ids=stops), Sampling(max_new_tokens=5, stop_ids=stops)):
        assert together(sampling) == dict(enumerate(alone(sampling)))


@dataclasses.dataclass(frozen=True)
class FailingMicroBatch(MicroBatch):
    """A micro-batch whose forward pass raises `error`: an engine reads `target_mask` only in the pass."""

    error: Exception

    def __getattribute__(self, name: str) -> Any:
        if name == "target_mask":
            raise super().__getattribute__("error")
        return super().__getattribute__(name)


@every_way_and_the_fake
@pytest.mark.parametrize("case", TWO_CASES)
def test_when_memory_runs_out_the_engine_is_as_before(
    way: Way, case: str, models: dict[str, Path], tmp_path: Path
) -> None:
    plan = dataclasses.replace(PLAN, token_budget=64)
    engine, untouched = way.open(models[case], plan), way.open(models[case], plan)
    data = engine_variants.step_batch(plan, 1)
    first, second, third, *others = data.micro_batches
    failing = FailingMicroBatch(**vars(third), error=way.raises(way.says))
    with pytest.raises(OutOfMemory):
        engine.step(1, [first, second, failing, *others], data.num_targets, 1e-3)
    assert engine_variants.run(engine, plan, range(1, 3)) == engine_variants.run(untouched, plan, range(1, 3))
    after, right = (engine_variants.adapter_of(e, tmp_path / str(i)) for i, e in enumerate((engine, untouched)))
    assert all(np.array_equal(after[n], right[n]) for n in right)


@every_way_and_the_fake
def test_a_probe_leaves_no_trace(way: Way, models: dict[str, Path], tmp_path: Path) -> None:
    engine = way.open(models[TWO_CASES[0]], PLAN)
    before = engine_variants.adapter_of(engine, tmp_path)
    probe = engine.probe(pack(SAMPLES[:5], range(5), range(5)))
    assert probe.peak_bytes is None or probe.peak_bytes > 0
    after = engine_variants.adapter_of(engine, tmp_path)
    assert all(np.array_equal(after[n], before[n]) for n in before)
    assert engine_variants.run(engine, PLAN, range(1, 2)) == engine_variants.run(
        way.open(models[TWO_CASES[0]], PLAN), PLAN, range(1, 2)
    )


@every_way
def test_fresh_adapters_are_equal_whatever_the_engine(way: Way, models: dict[str, Path], tmp_path: Path) -> None:
    found = engine_variants.adapter_of(way.open(models[TWO_CASES[0]], PLAN), tmp_path / "a")
    right = engine_variants.adapter_of(engine_variants.WAYS[0].open(models[TWO_CASES[0]], PLAN), tmp_path / "b")
    assert found.keys() == right.keys()
    assert all(np.array_equal(found[n], right[n]) for n in right)


@pytest.fixture(scope="module")
def ten_steps(
    models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[float], engine_variants.Arrays]:
    """The losses of ten steps by the first way, and the adapter after them."""
    engine = engine_variants.WAYS[0].open(models[TWO_CASES[0]], PLAN)
    return engine_variants.run(engine, PLAN, range(1, 11)), engine_variants.adapter_of(
        engine, tmp_path_factory.mktemp("ten")
    )


@pytest.mark.parametrize("way", engine_variants.WAYS[1:], ids=[way.name for way in engine_variants.WAYS[1:]])
def test_ten_steps_are_the_same_run_on_every_engine(
    way: Way, models: dict[str, Path], ten_steps: tuple[list[float], engine_variants.Arrays], tmp_path: Path
) -> None:
    engine = way.open(models[TWO_CASES[0]], PLAN)
    assert engine_variants.run(engine, PLAN, range(1, 11)) == pytest.approx(ten_steps[0], rel=1e-5)
    assert engine_variants.b_norm(engine_variants.adapter_of(engine, tmp_path), ten_steps[1]) < 1e-3


@engine_variants.NO_MLX
def test_a_run_moves_from_torch_to_mlx_and_back(models: dict[str, Path], tmp_path: Path) -> None:
    torch_way, mlx_way = engine_variants.WAYS[0], next(way for way in engine_variants.WAYS if way.engine == "mlx")
    plan, folder = dataclasses.replace(PLAN, lora_dropout=0.1), models[TWO_CASES[1]]
    whole = torch_way.open(folder, plan)
    right = engine_variants.run(whole, plan, range(1, 7))
    losses, saved = [], None
    for number, way in enumerate((torch_way, mlx_way, torch_way)):
        engine = way.open(folder, plan)
        if saved is not None:
            engine.load(saved)
        losses += engine_variants.run(engine, plan, range(2 * number + 1, 2 * number + 3))
        saved = tmp_path / str(number)
        saved.mkdir()
        engine.save(saved)
    assert losses == pytest.approx(right, rel=1e-5)
    found, unmoved = (
        engine_variants.adapter_of(engine, tmp_path / "found"),
        engine_variants.adapter_of(whole, tmp_path / "right"),
    )
    assert engine_variants.b_norm(found, unmoved) < 1e-3
