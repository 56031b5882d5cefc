"""Rules: functions that turn the value of another tool's key into settings, a note, or a refusal with its reason.

A rule takes the value and all keys of the file or command line, because some settings depend on several keys.
A note or reason is an English text that is translated where it is shown.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lorafit.messages import noted

Keys = Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """The settings that a key becomes, and a note; or a refusal, whose reason is the note.

    `names` are the parts of the value that a refusal is about, if it is not about all of it.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    refused: bool = False
    names: tuple[str, ...] = ()


Rule = Callable[[Any, Keys], Outcome]

PLANNED = noted("chosen by the plan")
SAME = noted("already so")
ABSENT = (None, False, 0, "", "none", "no", "false", "null", "disabled")

PRECISION = noted("chosen by the plan; `--precision` sets it")
CHECKPOINTING = noted("chosen by the plan; `--recompute` sets it")
PACKED = noted("always: samples are packed without padding, and none sees another")
SEVERAL = noted("chosen by the plan; several GPUs: `--processes`, `--shard`")
TEMPLATE = noted("the model's own chat template is used; `--chat_template` sets another")
LOGS = noted("every step is recorded, for TensorBoard and in report.html")
TRACKERS = noted("only TensorBoard logs and report.html are written, always")
FOLDERS = noted("each run has a folder of its own")
PREPARED = noted("prepared data are cached and checked by their content")
BEST = noted("training does not stop early; the best step is kept as best_model")
CHECKPOINTS = noted("about every ten minutes; `--save_steps` sets it")
EVALUATIONS = noted("at most a twentieth of the time; `--eval_steps` sets it")
NOT_TRAINING = noted("no effect on training")
BATCH = noted("samples per step; with several GPUs, multiply by their number")

UNSUPPORTED = noted("not supported, and it would change the result")
PREDICTION = noted("only predicts without do_train: `lorafit chat` and `lorafit compare` answer questions")
SFT_ONLY = noted("only supervised fine-tuning (sft) is supported")
LORA_ONLY = noted("only LoRA is supported")
DORA = noted("DoRA is not supported")
LINEAR_ONLY = noted("only linear layers of the decoder are trained, by LoRA")
INITIALIZATION = noted("only LoRA's standard initialization is supported")
ANSWERS_ONLY = noted("only answers count toward the loss")
OPTIMIZERS = noted("only AdamW is supported, in float32 or 8-bit")
SCHEDULES = noted("only cosine, linear and constant schedules are supported")
WARMUP = noted("needs max_steps; or set warmup_ratio")
CHECKPOINT_OF_OTHERS = noted("only runs of lorafit can be resumed; `init_adapter` starts from an adapter's weights")


def same(name: str, note: str = "") -> Rule:
    """Return the rule of a key that has the meaning and values of our setting `name`."""
    return lambda value, keys: Outcome({name: value}, note)


def said(note: str) -> Rule:
    """Return the rule of a key that needs no setting; `note` says why."""
    return lambda value, keys: Outcome({}, note)


def refused_unless(reason: str, *accepted: Any, note: str = SAME) -> Rule:
    """Return the rule of a key that is refused with `reason`, except for a value that is `accepted` or off."""

    def rule(value: Any, keys: Keys) -> Outcome:
        harmless = value in ([], {}) or value in accepted or (not isinstance(value, list | dict) and value in ABSENT)
        return Outcome({}, note) if harmless else Outcome({}, reason, refused=True)

    return rule


def number(value: Any) -> float:
    """Return `value` as a number; YAML reads `1e-4` as text. NaN for anything else, which no setting accepts."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def whole(value: Any) -> Any:
    """Return a number without a fraction as an integer, and any other value unchanged."""
    return int(number(value)) if number(value).is_integer() else value


def on(value: Any) -> bool:
    """Return whether a switch is on; a typed one may be text."""
    return str(value).lower() not in ("false", "none", "no", "off", "0", "")


def effective_batch(*names: str) -> Rule:
    """Return the rule of a batch size: the product of the keys `names` is the effective batch size."""

    def rule(value: Any, keys: Keys) -> Outcome:
        product = math.prod(number(1 if keys.get(name) is None else keys[name]) for name in names)
        return Outcome({"effective_batch": whole(product)}, BATCH)

    return rule


def targets(value: Any, keys: Keys) -> Outcome:
    """Convert a list of layers, or a text of them with commas."""
    return Outcome({"lora_targets": ",".join(map(str, value)) if isinstance(value, list) else str(value)})


def optimizer(value: Any, keys: Keys) -> Outcome:
    """Convert the name of an optimizer in transformers."""
    names = {"adamw": "adamw", "adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_hf": "adamw",
             "paged_adamw": "adamw", "paged_adamw_32bit": "adamw", "adamw_torch_8bit": "paged_adamw_8bit",
             "adamw_bnb_8bit": "paged_adamw_8bit", "adamw_8bit": "paged_adamw_8bit",
             "paged_adamw_8bit": "paged_adamw_8bit"}  # fmt: skip
    ours = names.get(str(value))
    return Outcome({}, OPTIMIZERS, refused=True) if ours is None else Outcome({"optimizer": ours})


def schedule(value: Any, keys: Keys) -> Outcome:
    """Convert the name of a learning rate schedule in transformers. Its `constant` has no warm-up."""
    if value == "constant":
        return Outcome({"lr_scheduler": "constant", "warmup_ratio": 0.0})
    ours = "constant" if value == "constant_with_warmup" else value
    known = ours in ("constant", "cosine", "linear")
    return Outcome({"lr_scheduler": ours}) if known else Outcome({}, SCHEDULES, refused=True)


def warmup_steps(value: Any, keys: Keys) -> Outcome:
    """Convert steps of warm-up: a share of max_steps, if the keys have it."""
    steps, total = number(value), number(keys.get("max_steps") or 0)
    if keys.get("lr_scheduler_type", keys.get("lr_scheduler")) == "constant":
        return Outcome({}, SAME)
    if steps < 1:
        return Outcome({"warmup_ratio": steps})
    return Outcome({"warmup_ratio": steps / total}) if total > 0 else Outcome({}, WARMUP, refused=True)


def max_steps(value: Any, keys: Keys) -> Outcome:
    """Convert the number of steps; a number below 1 means that the epochs decide."""
    return Outcome({}, SAME) if number(value) <= 0 else Outcome({"max_steps": whole(value)})


def steps_or(name: str, note: str) -> Rule:
    """Return the rule of a number of steps; a share below 1 has no counterpart, and `note` says what happens."""
    return lambda value, keys: Outcome({}, note) if number(value) < 1 else Outcome({name: whole(value)})


def prediction(value: Any, keys: Keys) -> Outcome:
    """Refuse a file that only predicts; a prediction after a training is another command here."""
    if on(value) and not on(keys.get("do_train")):
        return Outcome({}, PREDICTION, refused=True)
    return Outcome({}, NOT_TRAINING)


def quantization(bits: str) -> Rule:
    """Return the rule of the switch load_in_4bit or load_in_8bit."""

    def rule(value: Any, keys: Keys) -> Outcome:
        others = ("load_in_4bit", "load_in_8bit")
        any_on = any(on(keys.get(name)) for name in others)
        return Outcome({"quantization": bits if on(value) else "none"} if on(value) or not any_on else {}, SAME)

    return rule


def only(reason: str, *accepted: Any) -> Rule:
    """Return the rule of a key that is refused with `reason`, except for a value that is `accepted` or absent."""
    return lambda value, keys: (
        Outcome({}, SAME) if value is None or value in accepted else Outcome({}, reason, refused=True)
    )


def adapter_scale(rank: str, alpha: str, rslora: str) -> Rule:
    """Return the rule of the keys `alpha` and `rslora`.

    The default of alpha is twice the rank. rsLoRA's scale alpha / sqrt(r) is LoRA's with alpha times sqrt(r).
    """

    def rule(value: Any, keys: Keys) -> Outcome:
        r = number(keys.get(rank) or 8)
        theirs = number(keys.get(alpha) or 2 * r)
        return Outcome({"lora_alpha": whole(theirs * (r**0.5 if r > 0 and on(keys.get(rslora)) else 1.0))})

    return rule


def adapter_rank(alpha: str, scale: Rule) -> Rule:
    """Return the rule of the rank, which also sets alpha if the key `alpha` is absent."""
    return lambda value, keys: Outcome(
        {"lora_r": whole(value)} | ({} if alpha in keys else scale(value, keys).settings)
    )
