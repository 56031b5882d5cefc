"""The examination of one family in a process of its own: each stage sends its outcome at once.

Stages: make a tiny model, plan, open the torch engine, a step against transformers, the adapter in peft, answers against
passes without a cache, MLX. A refusal in words (LorafitError) is an outcome, any other exception a crash.
"""

import faulthandler
import importlib.util
import os
import re
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from safetensors.torch import load_file
from support import engine_runs
from support.model_zoo.folder import is_known, save_family, text_logits
from support.plans import make_plan

import lorafit
from lorafit import registry
from lorafit.data.dataset import prepare_cached
from lorafit.data.micro_batch import Sample
from lorafit.engines.base import Engine, Setup
from lorafit.engines.tokenizer import shared_tokenizer
from lorafit.errors import LorafitError
from lorafit.models.spec import read_spec
from lorafit.planner.plan import Plan
from lorafit.progress import exhaust
from lorafit.sampling import Sampling
from matrix import reference
from matrix.outcome import Outcome, compared, crashed, refused, short_names

LENGTHS = (5, 40, 23, 70)  # tokens of the samples: below and beyond every window, chunk and block of the models
PROMPTS = (37, 9)  # tokens
NEW_TOKENS = 12
PLAN = make_plan(
    effective_batch=len(LENGTHS),
    train_samples=len(LENGTHS),
    token_budget=200,
    max_grad_norm=0.0,
    steps=1,
    warmup_steps=0,
)
GREEDY = Sampling(temperature=0.0, max_new_tokens=NEW_TOKENS)
ROWS = '{"instruction": "Add one and two.", "output": "Three."}\n{"instruction": "Say yes.", "output": "Yes, of course."}\n'

ROUTER = re.compile(r"\.(router|gate)(\.|$)|_router$")  # in the name of a module


def ids(length: int, seed: int) -> list[int]:
    """Return `length` random IDs of plain bytes."""
    found: list[int] = np.random.default_rng(seed).integers(3, 250, length).tolist()
    return found


def samples() -> list[Sample]:
    """Return the samples of the step; the second half of each is its targets."""
    return [
        Sample(np.asarray(ids(length, length), np.int32), np.arange(length) >= (length + 1) // 2) for length in LENGTHS
    ]


def run(name: str, scratch: Path, results: Connection) -> None:
    """Examine the family `name` in the empty folder `scratch` and send (stage, outcome) pairs through `results`."""
    log = (scratch / "log").open("w")
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    faulthandler.enable(log)
    torch.set_num_threads(1)
    Examination(name, scratch, results).run()
    results.close()
    log.flush()
    os._exit(0)  # threads of a library do not hold the process up


class Examination:
    """One family: its folder, what earlier stages found, and the connection for outcomes."""

    def __init__(self, name: str, scratch: Path, results: Connection) -> None:
        self.name, self.results = name, results
        self.folder, self.scratch = scratch / "model", scratch
        self.adapter: Path | None = None  # with the start of the step
        self.reference: Any = None

    def run(self) -> None:
        """Do all stages; a stage that needs a failed one is left out."""
        if not is_known(self.name):
            self.results.send(("make", Outcome("absent", "not in the installed transformers")))
            return
        if not self.stage("make", self.make):
            return
        planned = self.stage("plan", self.plan)
        if planned and self.stage("train", self.open_torch):
            self.stage("step", self.step)
            self.stage("peft", self.peft)
            self.stage("answer", self.answer)
        self.stage("mlx", self.mlx)

    def stage(self, name: str, deed: Callable[[], Outcome]) -> bool:
        """Send the outcome of `deed` under `name`; return whether the next stages can follow."""
        self.results.send(("begin", name))
        began = time.monotonic()
        try:
            outcome = deed()
        except LorafitError as error:
            outcome = refused(error, self.scratch)
        except reference.UnknownModules as error:
            outcome = Outcome("wrong", "names", {"unknown modules": str(error)})
        except (Exception, SystemExit) as error:  # mlx_lm ends the process where a package is missing
            traceback.print_exc()
            outcome = crashed(error, self.scratch)
        self.results.send((name, replace(outcome, seconds=time.monotonic() - began)))
        return outcome.state == "ok"

    def make(self) -> Outcome:
        """Save the model."""
        try:
            model = save_family(self.name, self.folder)
        except ImportError as error:
            return Outcome("absent", " ".join(str(error).split())[:200])
        size = sum(parameter.numel() for parameter in model.parameters())
        return Outcome("ok", type(model).__name__, {"parameters": size})

    def plan(self) -> Outcome:
        """Plan a run on the CPU, as `lorafit plan` does."""
        rows = self.scratch / "rows.jsonl"
        rows.write_text(ROWS, "utf-8")
        config = lorafit.TrainConfig(
            model_name=str(self.folder),
            dataset_name=str(rows),
            device="cpu",
            engine="torch",
            precision="fp32",
            val_size=0,
        )
        read_spec(self.folder)
        # The plan finds the tokenized rows in the cache, and starts no process for them.
        exhaust(prepare_cached(config, self.folder, partial(shared_tokenizer, self.folder, None, False), None))
        preview = lorafit.plan(config)
        return Outcome("ok", "", {"linears": len(preview.spec.linears)})

    def open_torch(self) -> Outcome:
        """Open the engine for training, and give the adapter nonzero values."""
        self.engine: Any = self.open("torch", PLAN)
        self.adapter = engine_runs.start_with_b(self.engine, self.scratch / "start")
        self.engine.save_adapter(self.adapter)  # as a run saves it, with the engine's own choice of names
        facts = self.engine.facts
        path = "fast" if getattr(self.engine, "packed", None) is not None else "generic"
        way = path if facts.supports_packing else "one at a time"
        names = facts.target_modules
        kinds, routers = sorted({name.rpartition(".")[2] for name in names}), [n for n in names if ROUTER.search(n)]
        told = {"modules": len(names), "kinds": kinds, "routers": short_names(routers), "notes": facts.notes}
        return Outcome("ok", way, told)

    def open(self, engine: str, plan: Plan | None) -> Engine:
        """Open the model in `folder` with an engine of the registry, on the CPU in float32."""
        plan = plan and replace(plan, engine=engine)
        setup = Setup(self.folder, str(self.folder), "cpu", "fp32", plan=plan)
        opened: Engine = registry.load(registry.ENGINES[engine]).open(setup)
        return opened

    def plain_lora(self, adapter: Path) -> reference.PlainLora:
        """Return the adapter on transformers' own model, which is loaded once."""
        if self.reference is None:
            self.reference = reference.load_model(self.folder)
        return reference.PlainLora(self.reference, adapter)

    def step(self) -> Outcome:
        """Compare loss and gradients of a step with transformers' own."""
        assert self.adapter is not None
        loss, gradients = engine_runs.first_step(self.engine, PLAN, self.scratch / "step", samples())
        return self.compare(loss, gradients, self.adapter)

    def compare(self, loss: float, gradients: engine_runs.Arrays, adapter: Path) -> Outcome:
        """Return the distances of a step's loss and gradients from transformers' own."""
        lora = self.plain_lora(adapter)
        wanted_loss, wanted = reference.loss_and_gradients(self.reference, lora, samples())
        if gradients.keys() != wanted.keys():
            return Outcome("wrong", "names", {"differing": sorted(gradients.keys() ^ wanted.keys())[:4]})
        return compared(loss, gradients, wanted_loss, wanted)

    def peft(self) -> Outcome:
        """Load base and adapter with transformers and peft; compare the tensors, and the logits with plain LoRA's."""
        assert self.adapter is not None
        sample = torch.tensor(ids(max(LENGTHS), 0))
        lora = self.plain_lora(self.adapter)
        with lora.attached(), torch.no_grad():
            wanted = text_logits(self.reference, sample)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                model = peft.PeftModel.from_pretrained(reference.load_model(self.folder), self.adapter).eval()
            except Exception as error:  # peft refuses the adapter
                return Outcome("wrong", "refused", {"peft": f"{type(error).__name__}: {error}"[:300]})
        stored = load_file(self.adapter / "adapter_model.safetensors")
        held = peft.get_peft_model_state_dict(model)
        dropped = sorted(n for n in stored if n not in held or not torch.equal(stored[n], held[n].float()))
        new = sorted(held.keys() - stored.keys())
        with torch.no_grad():
            found = text_logits(model.base_model.model, sample)
        off = float((found - wanted).norm() / wanted.norm())
        facts: dict[str, Any] = {"logits": off, "dropped": len(dropped), "new": len(new)}
        facts["names"] = short_names(name.partition(".lora_")[0] for name in dropped + new)
        facts["warnings"] = sorted(
            {str(warning.message)[:120] for warning in caught if "adapter" in str(warning.message)}
        )
        state = "ok" if off <= 1e-4 and not dropped and not new else "wrong"
        return Outcome(
            state, f"{off:.0e}" if state == "ok" else f"{off:.0e}, {len(dropped)} lost, {len(new)} new", facts
        )

    def answer(self) -> Outcome:
        """Answer one prompt, then two in a batch, as a chat with the adapter does, and follow each without a cache."""
        assert self.adapter is not None
        engine = self.open("torch", None)
        engine.load_adapter(self.adapter)
        prompts = [ids(length, length) for length in PROMPTS]
        found = {"one": list(engine.generate(prompts[0], GREEDY))}
        for finished in engine.answers(prompts, GREEDY):
            found |= {f"batch {place}": tokens for place, tokens in finished.items()}
        faults: dict[str, Any] = {}
        with self.plain_lora(self.adapter).attached():
            for name, answer in found.items():
                prompt = prompts[1] if name == "batch 1" else prompts[0]
                fault = reference.first_difference(self.reference, prompt, answer)
                if fault or len(answer) != NEW_TOKENS:
                    faults[name] = fault or f"{len(answer)} tokens"
        return Outcome("wrong", "differs", faults) if faults else Outcome("ok", "equal")

    def mlx(self) -> Outcome:
        """Open the MLX engine, load the adapter of torch if there is one, and compare a step with transformers' own."""
        if any(importlib.util.find_spec(name) is None for name in ("mlx", "mlx_lm")):
            return Outcome("absent", "MLX is not installed")
        engine = self.open("mlx", PLAN)
        adapter = self.adapter or engine_runs.start_with_b(engine, self.scratch / "mlx-start")
        try:
            engine.load_adapter(adapter)
        except LorafitError as error:
            return replace(refused(error, self.scratch), cell="no: another adapter")
        if engine.facts.longest_sample is not None:  # training refuses longer samples
            limit = f"up to {engine.facts.longest_sample} tokens"
            return Outcome(
                "refused", limit, {"what": "MLX ignores the attention window of this model.", "found": limit}
            )
        loss, gradients = engine_runs.first_step(engine, PLAN, self.scratch / "mlx-step", samples())
        found = self.compare(loss, gradients, adapter)
        return replace(found, facts={**found.facts, "notes": engine.facts.notes})
