"""Next-token distributions of an export beside those of the base with the live adapter, on the same texts.

The texts are validation rows of the run, which it did not train on, or a short public text that comes with lorafit.
Letters: P positions, V vocabulary.
"""

import gc
import json
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lorafit import registry
from lorafit.data.conversation import BadRow, Conversation, Message
from lorafit.data.micro_batch import Sample
from lorafit.data.render import TemplateRefused, render
from lorafit.engines.base import Setup
from lorafit.engines.tokenizer import ChatTokenizer
from lorafit.errors import DataError, ExportError, HubError, LorafitError, RunError
from lorafit.evaluation.validation import load_validation_rows
from lorafit.exporters.base import ExportSource
from lorafit.exporters.certificate import Behaviour
from lorafit.messages import _
from lorafit.progress import ProgressCallback

PROBE = "probe.jsonl"
ROWS, FEW_ROWS, TOKENS, POSITIONS = 20, 8, 256, 120  # rows (of large models: few), tokens of a row, and all positions
LARGE = 2_000_000_000  # parameters
MOST_NUMBERS = 1 << 25  # log-probabilities that are kept of each model: 128 MiB
LEAST_LOG_P = -12.0  # less likely tokens do not count for the largest difference
NOTHING = 1e-3  # KL(live || base) in nats, below which the adapter changes nothing
MOST_RATIO = 0.05  # of KL(live || export) to KL(live || base)
MOST_ROUNDING = 0.15  # more of it where the base itself is rounded: half of alpha would give 0.25


LogProbs = list[NDArray[np.float32]]  # [P,V] of each row


class ProbeText(NamedTuple):
    """A text as token IDs, and the positions whose next tokens are looked at."""

    ids: list[int]
    positions: list[int]


def probe_conversations() -> list[Conversation]:
    """Return the public text that comes with lorafit: short questions with answers, in Chinese and English."""
    text = (resources.files("lorafit.exporters") / PROBE).read_text("utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return [[Message("user", row["question"]), Message("assistant", row["answer"])] for row in rows]


def rows_of(source: ExportSource, say: ProgressCallback) -> tuple[str, list[ProbeText]]:
    """Return "validation" and rows of the run's validation set; "probe" and the public text where there are none."""
    limit, rows = max(MOST_NUMBERS // source.spec.vocab, ROWS), FEW_ROWS if source.spec.parameters > LARGE else ROWS
    if source.trained is not None:
        try:
            found = load_validation_rows(source.trained, source.base.folder, source.trust_remote_code, say)
            return "validation", _chosen(list(found.samples.select(np.arange(min(rows, len(found.samples))))), limit)
        except (RunError, DataError, HubError, OSError):  # the data moved or changed, or there are no such rows
            pass
    return "probe", _chosen(list(_rendered(source))[:: ROWS // rows], limit)


def _rendered(source: ExportSource) -> Iterator[Sample]:
    for conversation in probe_conversations():
        try:
            yield render(conversation, source.tokenizer, TOKENS, source.chat.date_string).sample
        except BadRow:  # a template in which no answer is found
            ids, _spans = source.tokenizer.encode_with_offsets("\n".join(turn.content for turn in conversation))
            yield Sample(np.asarray(ids, np.int32), np.arange(len(ids)) > 0)


def _chosen(samples: list[Sample], limit: int) -> list[ProbeText]:
    """Return the rows with at most `limit` positions, evenly spread over the tokens in the loss."""
    each = max(min(POSITIONS, limit) // max(len(samples), 1), 1)
    rows = []
    for sample in samples:
        targets = np.flatnonzero(sample.target_mask[:TOKENS])
        if len(targets):
            places = targets[np.unique(np.linspace(0, len(targets) - 1, each).round().astype(int))] - 1
            rows.append(ProbeText(sample.input_ids[: int(places[-1]) + 1].tolist(), places.tolist()))
    return rows


class _Model:
    """A model in float32 arithmetic by the PyTorch engine on the CPU."""

    def __init__(self, setup: Setup) -> None:
        self.engine: Any = registry.load(registry.ENGINES["torch"]).open(setup)
        self._log_probs: Any = registry.load(registry.LOG_PROBS)

    def log_probs(self, rows: list[ProbeText]) -> Iterator[NDArray[np.float32]]:
        """Yield log-probabilities [P,V] of each row."""
        return (self._log_probs(self.engine, row.ids, row.positions) for row in rows)


def measure(
    source: ExportSource, exported: Path, precision: str, rounding: str | None, say: ProgressCallback
) -> Behaviour:
    """Return how the model in the folder `exported` answers. `precision`: storage of the weights, bf16 or fp32.

    `rounding` is the type, as torch names it, to which the base's own weights are rounded; None: they keep their type.
    Raises ExportError if the export cannot be loaded.
    """
    kind, rows = rows_of(source, say)
    say(_("Measuring the adapter"))
    setup = Setup(source.base.folder, source.base.name, "cpu", precision, source.quantization, source.trust_remote_code)
    model = _Model(setup)
    base = list(model.log_probs(rows))
    model.engine.load_adapter(source.adapter)
    live = list(model.log_probs(rows))
    rounded = live
    if rounding is not None:
        registry.load(registry.ROUND_WEIGHTS)(model.engine, rounding)
        rounded = list(model.log_probs(rows))
    del model
    gc.collect()
    say(_("Measuring the export"))
    try:
        model = _Model(replace(setup, folder=exported, quantization="none"))
        found = list(model.log_probs(rows))
    except LorafitError as error:
        raise ExportError(_("The export cannot be loaded."), found=f"{error.what} {error.found or ''}") from error
    return compare(kind, live, base, rounded, found)


def compare(kind: str, live: LogProbs, base: LogProbs, rounded: LogProbs, found: LogProbs) -> Behaviour:
    """Return the figures of the log-probabilities [P,V] of each row by the models; `rounded`: live, on a rounded base."""
    both = list(zip(live, found, strict=True))
    kl_export = _mean([_kl(one, other) for one, other in both])
    kl_base = _mean([_kl(one, other) for one, other in zip(live, base, strict=True)])
    kl_rounding = _mean([_kl(one, other) for one, other in zip(live, rounded, strict=True)])
    return Behaviour(
        rows=kind,
        positions=sum(len(one) for one in live),
        kl_export=kl_export,
        kl_base=kl_base,
        kl_rounding=kl_rounding,
        ratio=kl_export / kl_base if kl_base >= NOTHING else None,
        largest=max(float(np.abs(one - other)[one > LEAST_LOG_P].max()) for one, other in both),
        top1=float(np.concatenate([one.argmax(-1) == other.argmax(-1) for one, other in both]).mean()),
    )


def require_same(found: Behaviour) -> None:
    """Raise ExportError if the export answers unlike base and adapter.

    Where the adapter changes nothing, the export may not change more than that either. Rounding of the base's own weights,
    which the user asked for by --dtype, is allowed for.
    """
    limit = MOST_RATIO * found.kl_base + min(2 * found.kl_rounding, MOST_ROUNDING * found.kl_base)
    limit = NOTHING if found.ratio is None else limit
    if found.kl_export <= limit:
        return
    text = _("KL(adapter || export) = {export:.2g}, KL(adapter || base) = {base:.2g}, at most {limit:.2g} is accepted")
    raise ExportError(
        _("The export does not answer as the base model with the adapter does."),
        found=text.format(export=found.kl_export, base=found.kl_base, limit=limit),
        fix=_(
            "Export in float32: `--dtype fp32`. If that fails too, please report it; `--to peft` exports the adapter."
        ),
    )


def _kl(live: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return KL(live || other) of each position [P]."""
    share = np.exp(live, dtype=np.float64)
    found: NDArray[np.float64] = np.multiply(share, live.astype(np.float64) - other, where=share > 0, out=share).sum(-1)
    return found


def _mean(parts: list[NDArray[np.float64]]) -> float:
    return max(float(np.concatenate(parts).mean()), 0.0)


def template_ids(tokenizer: ChatTokenizer, date_string: str) -> list[list[int]]:
    """Return the token IDs of the public conversations, each once whole and once up to the answer.

    They are empty where the template refuses the conversation.
    """
    return [
        _ids(tokenizer, turns, prompt, date_string)
        for conversation in probe_conversations()
        for turns, prompt in ((conversation, False), (conversation[:1], True))
    ]


def _ids(tokenizer: ChatTokenizer, turns: Conversation, prompt: bool, date_string: str) -> list[int]:
    try:
        return tokenizer.encode_with_offsets(tokenizer.render_text(turns, prompt, date_string))[0]
    except TemplateRefused:
        return []
