"""The plan of a run: the config resolved for one machine, one model and one data set, without None, "auto" or -1."""

import json
from contextlib import suppress
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from lorafit.atomic import read_errors
from lorafit.errors import RunError
from lorafit.messages import TranslatedText, _, listed, retranslate
from lorafit.units import kind_text

SAVE_SECONDS = 600.0  # between checkpoints, unless --save_steps says otherwise: the most that a crash costs


@dataclass(frozen=True)
class Choice:
    """One decision of the planner: `setting` has `value` because of `reason`, a text for the user."""

    setting: str
    value: str
    reason: str

    def written(self) -> dict[str, Any]:
        """Return the choice for JSON: its fields, and under "again" the recipes that translate its texts again."""
        said = {name: text.recipe for name, text in vars(self).items() if isinstance(text, TranslatedText)}
        return {**vars(self), "again": said}

    @classmethod
    def read(cls, facts: dict[str, Any]) -> "Choice":
        """Make a choice from what `written` returned, translated into the current language.

        Texts without a usable recipe stay as written. Raise TypeError if a field is missing.
        """
        words = {f.name: facts[f.name] for f in fields(cls) if f.name in facts}
        with suppress(LookupError, TypeError, ValueError, AttributeError):
            words |= {name: str(retranslate(recipe)) for name, recipe in facts["again"].items() if name in words}
        return cls(**words)


def _fits(value: object, kind: Any) -> bool:
    """Return whether a JSON value has the type of a field of Plan: a number, a text, or a collection of these."""
    parts = get_args(kind)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_fits(part, parts[1]) for part in value.values())
    if get_origin(kind) is tuple:
        return isinstance(value, list | tuple) and len(value) == len(parts) and all(map(_fits, value, parts))
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    return isinstance(value, get_origin(kind) or kind)


def _must_be_there(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


# Fields that say how a run is computed. Of these, quantization and optimizer also change the trained adapter.
COMPUTATION_FIELDS = ("engine", "device", "precision", "quantization", "optimizer", "token_budget", "max_micro_batch", "recompute",
       "loss_chunk", "allocator", "compile", "save_steps", "eval_steps", "keep_checkpoints")  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """All settings that the engine and the training loop need. Memory is in bytes, lengths are in tokens."""

    # device and precision
    engine: str
    device: str
    precision: str  # fp32 | bf16 | fp16: storage of the base and arithmetic
    quantization: str  # none | 4bit | 8bit
    optimizer: str  # adamw | paged_adamw_8bit
    # training settings, which determine the result
    steps: int
    effective_batch: int
    train_samples: int
    valid_samples: int
    num_epochs: float
    seed: int
    learning_rate: float
    lr_scheduler: str
    warmup_steps: int
    weight_decay: float
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float
    max_grad_norm: float
    lora_r: int
    lora_alpha: float
    lora_dropout: float
    lora_targets: str
    data_digest: str
    # computation, which changes speed and memory only
    token_budget: int
    max_micro_batch: int  # samples
    recompute: int  # layers with gradient checkpointing
    loss_chunk: int  # tokens in the loss whose logits are computed at once
    save_steps: int  # 0: checkpoints by time only
    eval_steps: int
    keep_checkpoints: int
    predicted_peak_bytes: int
    available_bytes: int
    processes: int = 1
    allocator: str = "default"  # fast | lean | default: profile of glibc's malloc
    compile: str = "off"  # on | off: torch.compile on each layer of the generic path
    shard: bool = False  # the base weights are sharded over the processes (FSDP)
    choices: list[Choice] = field(default_factory=list)
    predicted_seconds: float = 0.0  # whole run
    predicted_step_seconds: float = 0.0
    predicted_range: tuple[float, float] = (0.0, 0.0)
    predicted_tokens_per_second: float = 0.0
    memory_terms: dict[str, int] = field(default_factory=dict)  # bytes
    # The modules whose rank or alpha differs from lora_r and lora_alpha, as in PEFT (run_folders/module_pattern.py).
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the plan to `path` as JSON."""
        facts = {**asdict(self), "choices": [choice.written() for choice in self.choices]}
        path.write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n", "utf-8")

    @classmethod
    def load(cls, path: Path) -> "Plan":
        """Read the plan in `path`. Raise RunError if the file cannot be read or is not a plan."""
        try:
            with read_errors(path):
                return cls.of(json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            fix = _("Use the plan.json of a run, e.g. {example}.").format(example="--plan output/RUN/plan.json")
            raise RunError(_("Not a plan.json written by lorafit."), where=path, found=error, fix=fix) from None

    @classmethod
    def of(cls, facts: dict[str, Any]) -> "Plan":
        """Make a plan from the content of a plan.json. Raise ValueError or TypeError if the content is not a plan."""
        if lacking := [f.name for f in fields(cls) if f.name not in facts and _must_be_there(f)]:
            raise ValueError(
                _("missing: {names}").format(names=listed([*lacking[:3], *(["..."] if lacking[3:] else [])]))
            )
        known = {f.name: facts[f.name] for f in fields(cls) if f.name in facts}
        for name, kind in get_type_hints(cls).items():
            if name in known and not _fits(known[name], kind):
                raise TypeError(f"{name}: {kind_text(known[name])}")
        choices = [Choice.read(c) for c in facts.get("choices", [])]
        predicted_range = tuple(facts.get("predicted_range", (0.0, 0.0)))
        return cls(**{**known, "choices": choices, "predicted_range": predicted_range})

    def computed_as(self, other: "Plan") -> "Plan":
        """Return this plan with the fields in HOW taken from `other`."""
        return replace(self, **{name: getattr(other, name) for name in COMPUTATION_FIELDS})
