"""Does the torch engine learn exactly what plain transformers + peft + AdamW learn, whatever the model's family?"""

import dataclasses
import math
import weakref
from pathlib import Path

import numpy as np
import peft
import pytest
import tiny
import torch
import torch.nn.functional as F
import transformers

from lorafit.config import TrainConfig
from lorafit.data.batch import MicroBatch, Sample, pack
from lorafit.data.dataset import prepare
from lorafit.data.sources import read_rows
from lorafit.data.steps import batch, lr_at, step_samples
from lorafit.engines.base import OutOfMemory
from lorafit.engines.tokenizer import load_tokenizer
from lorafit.engines.torch import checks, device
from lorafit.engines.torch.attention import segment_attention
from lorafit.engines.torch.engine import TorchEngine
from lorafit.engines.torch.loss import Head
from lorafit.errors import AdapterError, ConfigError, EngineError, ModelError
from lorafit.plan.plan import Plan
from lorafit.sampling import Sampling


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for family in tiny.FAMILIES | tiny.LONERS:
        tiny.save_model(family, folder / family)
    return folder


def reference_steps(
    model: torch.nn.Module, samples: list[Sample], plan: Plan
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The plain loop: one sample at a time, full logits, torch's clipping and AdamW; losses, and step 1's gradients."""
    named = {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(named.values(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
    losses, first = [], {}
    for step in range(1, plan.steps + 1):
        taken = [samples[row] for row in step_samples(plan, step)]
        total = sum(sample.num_targets for sample in taken)
        loss_sum = 0.0
        for sample in taken:
            ids = torch.from_numpy(sample.input_ids.astype(np.int64))[None]
            labels = torch.where(torch.from_numpy(sample.target_mask), ids[0], -100)
            logits = model(input_ids=ids).logits[0, :-1]
            loss = F.cross_entropy(logits, labels[1:], reduction="sum") / total
            loss.backward()
            loss_sum += loss.item()
        losses.append(loss_sum)
        if step == 1:
            first = {n: p.grad.clone() for n, p in named.items()}
        torch.nn.utils.clip_grad_norm_(named.values(), plan.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, plan)
        optimizer.step()
        optimizer.zero_grad()
    return losses, first


def end_to_end(grads: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([grads[name].flatten() for name in sorted(grads)])


def same_as_reference(
    engine: TorchEngine,
    folder: Path,
    samples: list[Sample],
    plan: Plan,
    tmp_path: Path,
    together: float = 1e-5,
    worst: float = 1e-5,
) -> None:
    """`together` bounds the gradients of step 1 as one vector, `worst` each tensor's."""
    tiny.fill_b(engine)
    engine.save_adapter(tmp_path)
    start = {n: p.detach().clone() for n, p in engine._parameters().items()}
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model = peft.PeftModel.from_pretrained(base, tmp_path, is_trainable=True).eval()
    wanted, wanted_grads = reference_steps(model, samples, plan)
    data = batch(samples, step_samples(plan, 1), plan.token_budget, plan.max_micro_batch)
    grads = tiny.gradients(engine, 1, data.micro_batches, data.num_targets)
    assert checks.difference(end_to_end(grads), end_to_end(wanted_grads)) < together
    assert tiny.worst(grads, wanted_grads) < worst
    for step in range(1, plan.steps + 1):
        data = batch(samples, step_samples(plan, step), plan.token_budget, plan.max_micro_batch)
        result = engine.step(step, data.micro_batches, data.num_targets, lr_at(step, plan))
        assert result.loss_sum / data.num_targets == pytest.approx(wanted[step - 1], rel=1e-5)
    after = {n.replace(".default", ""): p.detach() for n, p in model.named_parameters() if p.requires_grad}
    moved, off = 0.0, 0.0
    for name, parameter in engine._parameters().items():
        if "lora_B" in name:
            off += float((parameter - after[name]).norm() ** 2)
            moved += float((after[name] - start[name]).norm() ** 2)
    assert moved > 0
    norm = sum(float(p.norm() ** 2) for n, p in after.items() if "lora_B" in n)
    assert (off / norm) ** 0.5 < 1e-3


@pytest.mark.parametrize("family", [f for f in tiny.FAMILIES if f != "mixtral"])
def test_ten_steps_equal_a_plain_peft_loop(models: Path, family: str, tmp_path: Path) -> None:
    plan = tiny.make_plan(token_budget=64)
    engine = tiny.open_engine(models / family, plan)
    assert engine.packs, engine.facts.notes
    same_as_reference(engine, models / family, tiny.make_samples(32), plan, tmp_path)


@pytest.mark.slow
def test_ten_steps_equal_a_plain_peft_loop_on_the_demo_model(demo_folder: Path, tmp_path: Path) -> None:
    """Real rows. Float32 itself is the bound here: peft's gradients are 3e-5 off float64 in the worst tensor, ours as much."""
    plan = tiny.make_plan(effective_batch=4, train_samples=16, token_budget=128, lora_r=8, loss_chunk=50)
    config = TrainConfig(max_length=64, val_size=0)
    data = prepare(list(read_rows("demo", "train[:16]")), load_tokenizer(demo_folder), config)
    samples = list(data.train)
    same_as_reference(
        tiny.open_engine(demo_folder, plan), demo_folder, samples, plan, tmp_path, together=5e-5, worst=1e-4
    )


def test_parameters_are_counted_as_peft_counts_them(models: Path) -> None:
    engine = tiny.open_engine(models / "llama", tiny.make_plan())
    base = transformers.AutoModelForCausalLM.from_pretrained(models / "llama")
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert engine.facts.trainable_parameters == model.get_nb_trainable_parameters()[0]


def test_fused_experts_are_named_as_not_trained(models: Path) -> None:
    engine = tiny.open_engine(models / "mixtral", tiny.make_plan())
    assert any("experts" in note for note in engine.facts.notes)
    assert engine.packs


def test_a_model_that_packs_wrongly_trains_sample_by_sample_and_says_so(
    models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def leaks(*arguments: object, **options: object) -> tuple[float, float]:
        return 0.5, 0.5

    monkeypatch.setattr("lorafit.engines.torch.checks.packing_error", leaks)
    plan = tiny.make_plan()
    engine = tiny.open_engine(models / "qwen3", plan)
    assert not engine.packs
    assert any("sample by sample" in note for note in engine.facts.notes)
    same_as_reference(engine, models / "qwen3", tiny.make_samples(32), plan, tmp_path)


@pytest.mark.parametrize("family", ["stablelm", "gpt_oss", "recurrent_gemma"])
def test_a_model_that_cannot_be_packed_learns_as_a_plain_peft_loop_does(
    models: Path, family: str, tmp_path: Path
) -> None:
    plan = tiny.make_plan(steps=3)
    engine = tiny.open_engine(models / family, plan)
    assert not engine.packs
    same_as_reference(engine, models / family, tiny.make_samples(32), plan, tmp_path)


def test_layers_that_take_no_part_are_saved_and_loaded_like_the_others(models: Path, tmp_path: Path) -> None:
    plan, samples = tiny.make_plan(), tiny.make_samples(32)
    engine = tiny.open_engine(models / "mamba", plan)
    data = batch(samples, step_samples(plan, 1), 64, 4096)
    engine.step(1, data.micro_batches, data.num_targets, 1e-3)
    engine.save(tmp_path)
    tiny.open_engine(models / "mamba", plan).load(tmp_path)


def test_a_model_without_linear_layers_is_refused_with_words(models: Path) -> None:
    with pytest.raises(ModelError, match="no linear layers"):
        tiny.open_engine(models / "gpt2", tiny.make_plan())


def test_a_head_that_we_do_not_know_is_refused_rather_than_trained_wrongly(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_the_rest(model: transformers.PreTrainedModel) -> Head:
        return Head(model.get_output_embeddings())

    monkeypatch.setattr("lorafit.engines.torch.engine.head_of", without_the_rest)
    tiny.open_engine(models / "llama", tiny.make_plan())
    with pytest.raises(ModelError, match="way of its own"):
        tiny.open_engine(models / "granite", tiny.make_plan())


def test_a_packing_check_that_overflows_is_not_passed(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorafit.engines.torch.checks.packing_error", lambda *_: (0.0, math.nan))
    assert not tiny.open_engine(models / "llama", tiny.make_plan()).packs


def test_the_packing_check_does_not_overflow_in_fp16(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.save_model("llama", models / "wide", vocab_size=60_000)
    engine = tiny.open_engine(folder, tiny.make_plan(precision="fp16"))
    assert engine.packs
    with engine._plain_and_moving():
        parameters = list(engine._parameters().values())
        assert checks.worst_packing_error(engine.model, engine.head, parameters, "cpu") < 0.01


def test_lora_goes_into_the_language_model_and_not_into_an_eye_with_more_layers(tmp_path: Path) -> None:
    name, text = tiny.FAMILIES["gemma3"]
    eye = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 5, "num_attention_heads": 4,
           "image_size": 28, "patch_size": 14}  # fmt: skip
    config = transformers.Gemma3Config(
        text_config=getattr(transformers, name)(**tiny.SHAPE, **text).to_dict(),
        vision_config=eye,
        mm_tokens_per_image=4,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    engine = tiny.open_engine(tmp_path, tiny.make_plan())
    assert len(engine.layers) == 3 * 7
    assert all("language_model" in name for name in engine.layers)
    assert engine.packs


def test_attention_comes_back_contiguous() -> None:
    q, k, v = (torch.randn(1, heads, 10, 8) for heads in (4, 2, 2))
    out, _none = segment_attention(torch.nn.Module(), q, k, v, None, cu_seq_lens_q=torch.tensor([0, 4, 10]))
    assert out.shape == (1, 10, 4, 8)
    assert out.is_contiguous()


def test_the_packing_check_sees_attention_that_leaks_between_samples(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny.open_engine(models / "llama", tiny.make_plan())
    assert engine.packs
    real = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: [0, 17] if t.dtype == torch.int32 else real(t))
    assert engine._check_packing() != []
    assert not engine.packs


def test_the_shares_of_lora_targets(models: Path) -> None:
    engine = tiny.open_engine(models / "llama", tiny.make_plan(lora_targets="q_proj, model.layers.1.mlp.up_proj"))
    assert len(engine.layers) == 4
    with pytest.raises(ConfigError) as error:
        tiny.open_engine(models / "llama", tiny.make_plan(lora_targets="q_proj,nonsense"))
    assert error.value.found == "nonsense"
    assert "q_proj" in str(error.value.fix)


def test_an_adapter_for_another_base_is_refused(models: Path, tmp_path: Path) -> None:
    tiny.open_engine(models / "qwen3", tiny.make_plan()).save_adapter(tmp_path)
    engine = tiny.open_engine(models / "llama", None)
    with pytest.raises(AdapterError) as error:
        engine.load_adapter(tmp_path)
    assert str(models / "qwen3") in error.value.what


def test_saved_and_loaded_it_goes_on_to_the_bit(models: Path, tmp_path: Path) -> None:
    plan, samples = tiny.make_plan(lora_dropout=0.1), tiny.make_samples(32)

    def run(engine: TorchEngine, steps: range) -> None:
        for step in steps:
            data = batch(samples, step_samples(plan, step), plan.token_budget, plan.max_micro_batch)
            engine.step(step, data.micro_batches, data.num_targets, lr_at(step, plan))

    straight = tiny.open_engine(models / "llama", plan)
    run(straight, range(1, 7))
    half = tiny.open_engine(models / "llama", plan)
    run(half, range(1, 4))
    half.save(tmp_path)
    other = tiny.open_engine(models / "llama", plan)
    other.load(tmp_path)
    run(other, range(4, 7))
    for name, parameter in straight._parameters().items():
        assert torch.equal(parameter, other._parameters()[name]), name


@pytest.mark.parametrize("optimizer", ["adamw", "paged_adamw_8bit"])
def test_moments_move_from_one_optimizer_to_another(models: Path, tmp_path: Path, optimizer: str) -> None:
    plan, samples = tiny.make_plan(optimizer=optimizer, lora_r=64), tiny.make_samples(32)
    data = batch(samples, step_samples(plan, 1), plan.token_budget, plan.max_micro_batch)
    engine = tiny.open_engine(models / "llama", plan)
    for step in (1, 2):
        engine.step(step, data.micro_batches, data.num_targets, 1e-3)
    engine.save(tmp_path)
    for kind, tolerance in ((optimizer, 0.0), ("adamw", 0.0), ("paged_adamw_8bit", 0.05)):
        other = tiny.open_engine(models / "llama", dataclasses.replace(plan, optimizer=kind))
        other.load(tmp_path)
        for name, parameter in other.optimizer.parameters.items():
            before, after = engine.optimizer.moments(engine._parameters()[name]), other.optimizer.moments(parameter)
            for moment in ("exp_avg", "exp_avg_sq"):
                off = np.linalg.norm(after[moment] - before[moment])
                assert off <= tolerance * np.linalg.norm(before[moment]) + 1e-12, (kind, name, moment)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_out_of_memory_leaves_the_engine_as_it_was(models: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, samples = tiny.make_plan(), tiny.make_samples(32)
    engine = tiny.open_engine(models / family, plan)
    data = batch(samples, step_samples(plan, 1), 64, 4096)
    before = {n: p.detach().clone() for n, p in engine._parameters().items()}
    owner, name = (engine.packed, "forward_backward") if engine.packed else (engine, "_forward_backward")
    real, calls = getattr(owner, name), []

    def fails_at_the_third(*arguments: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)")
        return real(*arguments)

    monkeypatch.setattr(owner, name, fails_at_the_third)
    with pytest.raises(OutOfMemory):
        engine.step(1, data.micro_batches, data.num_targets, 1e-3)
    assert all(p.grad is None for p in engine._parameters().values())
    assert all(torch.equal(p, before[n]) for n, p in engine._parameters().items())


def test_when_memory_runs_out_nothing_of_the_pass_stays_behind(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, samples = tiny.make_plan(lora_dropout=0.1), tiny.make_samples(32)
    engine = tiny.open_engine(models / "llama", plan)
    data = batch(samples, step_samples(plan, 1), 64, 4096)
    before = engine.evaluate(data.micro_batches)
    hidden, held, real = [], [], engine._hidden

    def seen(micro: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        found = real(micro)
        hidden.append(weakref.ref(found[0]))
        return found

    def no_memory(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(engine, "_hidden", seen)
    monkeypatch.setattr("lorafit.engines.torch.engine.target_loss", no_memory)
    empty = dataclasses.replace(engine.device, empty_cache=lambda: held.extend(ref() for ref in hidden))
    monkeypatch.setattr(engine, "device", empty)
    with pytest.raises(OutOfMemory):
        engine.step(1, data.micro_batches, data.num_targets, 1e-3)
    assert held == [None]
    monkeypatch.undo()
    assert engine.evaluate(data.micro_batches) == before


@pytest.mark.parametrize("optimizer", ["adamw", "paged_adamw_8bit"])
def test_moments_stand_before_the_first_step_so_that_no_update_ends_half_way(
    models: Path, tmp_path: Path, optimizer: str
) -> None:
    plan = tiny.make_plan(optimizer=optimizer)
    engine = tiny.open_engine(models / "llama", plan)
    states = engine.optimizer._torch.state
    assert all(len(states[p]) >= 3 for p in engine._parameters().values())
    engine.save(tmp_path)
    tiny.open_engine(models / "llama", plan).load(tmp_path)


@pytest.mark.parametrize("text", ["CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
                                  "Invalid buffer size: 9.00 GiB", "Insufficient Memory (00000008:kIOGPU...)"])  # fmt: skip
def test_what_backends_say_when_memory_runs_out_is_understood(text: str) -> None:
    with pytest.raises(OutOfMemory), device.translated(device.DEVICES["cpu"]):
        raise RuntimeError(text)


def test_a_loss_that_is_not_a_number_ends_the_run_and_touches_nothing(models: Path) -> None:
    plan, samples = tiny.make_plan(), tiny.make_samples(32)
    engine = tiny.open_engine(models / "llama", plan)
    layer = next(iter(engine.layers.values()))
    with torch.no_grad():
        layer.lora_B[0, 0] = float("nan")
    data = batch(samples, step_samples(plan, 1), 64, 4096)
    with pytest.raises(EngineError):
        engine.step(1, data.micro_batches, data.num_targets, 1e-3)


def test_fp16_overflow_halves_the_scale_and_computes_the_same_step_again(models: Path) -> None:
    plan, samples = tiny.make_plan(precision="fp16"), tiny.make_samples(32)
    engine = tiny.open_engine(models / "llama", plan)
    exact = tiny.open_engine(models / "llama", dataclasses.replace(plan, precision="fp32"))
    engine.scale.value = 2.0**40
    data = batch(samples, step_samples(plan, 1), 64, 4096)
    result = engine.step(1, data.micro_batches, data.num_targets, 1e-3)
    wanted = exact.step(1, data.micro_batches, data.num_targets, 1e-3)
    assert engine.scale.value < 2.0**40
    assert result.loss_sum == pytest.approx(wanted.loss_sum, rel=1e-2)
    assert result.grad_norm == pytest.approx(wanted.grad_norm, rel=5e-2)


def test_evaluation_equals_the_models_own_loss(models: Path) -> None:
    engine = tiny.open_engine(models / "gemma2", tiny.make_plan())
    samples = tiny.make_samples(5)
    found = engine.evaluate([pack(samples, range(5), range(5))])
    base = transformers.AutoModelForCausalLM.from_pretrained(models / "gemma2", attn_implementation="eager").eval()
    wanted = 0.0
    for sample in samples:
        ids = torch.from_numpy(sample.input_ids.astype(np.int64))[None]
        labels = torch.where(torch.from_numpy(sample.target_mask), ids[0], -100)
        with torch.no_grad():
            wanted += F.cross_entropy(base(input_ids=ids).logits[0, :-1], labels[1:], reduction="sum").item()
    assert found.num_targets == sum(s.num_targets for s in samples)
    assert found.loss_sum == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gemma3"])
def test_greedy_answers_equal_transformers_generate(models: Path, family: str) -> None:
    engine = tiny.open_engine(models / family, None)
    prompt = list(range(5, 25))
    found = list(engine.generate(prompt, Sampling(temperature=0.0, max_new_tokens=12)))
    model = transformers.AutoModelForCausalLM.from_pretrained(models / family, attn_implementation="eager").eval()
    ids = torch.tensor([prompt])
    for _i in range(12):
        with torch.no_grad():
            ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert found == ids[0, len(prompt) :].tolist()


def test_the_adapter_can_be_switched_off(models: Path) -> None:
    engine = tiny.open_engine(models / "llama", tiny.make_plan())
    samples = tiny.make_samples(5)
    micro_batches = [pack(samples, range(5), range(5))]
    base = engine.evaluate(micro_batches).loss_sum
    tiny.fill_b(engine)
    assert engine.evaluate(micro_batches).loss_sum != base
    engine.set_adapter(False)
    assert engine.evaluate(micro_batches).loss_sum == base


def test_a_probe_leaves_no_trace(models: Path) -> None:
    engine = tiny.open_engine(models / "llama", tiny.make_plan())
    samples = tiny.make_samples(5)
    probe = engine.probe(pack(samples, range(5), range(5)))
    assert probe.peak_bytes is None or probe.peak_bytes > 0
    assert all(p.grad is None for p in engine._parameters().values())


@pytest.mark.parametrize(("quantization", "tolerance"), [("4bit", 1e-5), ("8bit", 0.03)])
def test_gradients_through_a_quantised_base_equal_those_through_its_dequantised_weights(
    models: Path, quantization: str, tolerance: float
) -> None:
    """8-bit rounds the inputs too; 4-bit computes exactly with what its weights stand for."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    plan, samples = tiny.make_plan(quantization=quantization), tiny.make_samples(32)
    engine = tiny.open_engine(models / "llama", plan)
    exact = tiny.open_engine(models / "llama", dataclasses.replace(plan, quantization="none"))
    exact.packed = None  # it would keep the weights that are replaced below
    for name, layer in engine.layers.items():
        base = layer.base
        if quantization == "4bit":
            weight = bitsandbytes.functional.dequantize_4bit(base.weight.data, base.weight.quant_state)
        else:
            held = base.weight if base.weight.CB is not None else base.state  # it moves at the first product
            weight = held.CB.float() * held.SCB[:, None] / 127
        assert type(base) is not torch.nn.Linear
        exact.layers[name].base.weight.data = weight.float()
    tiny.fill_b(engine)
    tiny.fill_b(exact)
    data = batch(samples, step_samples(plan, 1), 100, 4096)
    grads = tiny.gradients(engine, 1, data.micro_batches, data.num_targets)
    wanted = tiny.gradients(exact, 1, data.micro_batches, data.num_targets)
    assert tiny.worst(grads, wanted) < tolerance
