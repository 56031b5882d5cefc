"""The number of token positions of a model, and their kind, from config.json and safetensors headers.

A table of positions has an end: a longer text is an error. Rotary positions (RoPE) have none, but answers are usually bad
beyond the number that the model was trained for.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

TABLE = re.compile(r"(^|\.)(wpe|embed_positions|positions?_embed(dings?)?|pos_embed(ding)?s?)\.weight$")
OTHER_TOWER = re.compile(r"vision|visual|audio|(^|\.)encoder\.")  # their tables are not those of the decoder
# Rows at the start of the table that no token uses, by model_type.
UNUSED_ROWS = {
    "opt": 2,
    "biogpt": 2,
    "bart": 2,
    "mbart": 2,
    "plbart": 2,
    "roberta": 2,
    "xlm-roberta": 2,
    "camembert": 2,
}
FIXED_TABLES = {"gptj", "codegen", "ctrl"}  # tables that transformers computes: no weight of them is stored
COUNTS = ("max_position_embeddings", "n_positions", "seq_length")
ROTARY = ("rope_parameters", "rope_scaling", "rope_theta", "rotary_dim", "rotary_pct", "rotary_emb_base", "rotary",
          "partial_rotary_factor", "rope_ratio")  # fmt: skip
ROTARY_TYPES = {"llama", "mistral", "gpt_neox", "baichuan", "internlm"}  # their older configs have no key of ROTARY
UNSCALED = {"default", "mrope", "proportional"}


@dataclass(frozen=True)
class Positions:
    """`limit` positions. `scaling` names the scaling of rotary positions, e.g. "yarn"; "" means none."""

    limit: int
    kind: Literal["table", "rope"]
    scaling: str = ""


def hard_limit(positions: Positions | None) -> int | None:
    """Return the number of tokens that no text can exceed, or None if there is no such number."""
    return positions.limit if positions is not None and positions.kind == "table" else None


def soft_limit(positions: Positions | None) -> int | None:
    """Return the number of tokens beyond which answers are usually bad, or None if there is no such number."""
    return positions.limit if positions is not None and positions.kind == "rope" else None


def positions_of(text: dict[str, Any], tensors: Iterable[tuple[str, tuple[int, ...]]], hidden: int) -> Positions | None:
    """Return the positions of a decoder with the config `text`, or None for models without a known number.

    Those are models with ALiBi, state-space models and models without positions. `tensors`: names and shapes.
    """
    kind = str(text.get("model_type", ""))
    known = next((text[key] for key in COUNTS if type(text.get(key)) is int and text[key] > 0), None)
    for name, shape in tensors:
        if TABLE.search(name) and not OTHER_TOWER.search(name) and len(shape) == 2 and shape[1] == hidden:
            rows = shape[0] - UNUSED_ROWS.get(kind, 0)
            return Positions(min(rows, known or rows), "table")
    if known is None or text.get("alibi") or str(text.get("position_embedding_type", "rope")) in ("alibi", "nope"):
        return None
    if kind in FIXED_TABLES:
        return Positions(known, "table")
    if kind in ROTARY_TYPES or any(text.get(key) is not None for key in ROTARY):
        return Positions(known, "rope", _scaling(text))
    return None


def _scaling(text: dict[str, Any]) -> str:
    """Return the type of the rotary scaling, or "". Some configs have one entry for each type of layer."""
    for key in ("rope_scaling", "rope_parameters"):
        entry = text.get(key)
        entries = [entry, *entry.values()] if isinstance(entry, dict) else []
        for one in filter(lambda one: isinstance(one, dict), entries):
            kind = one.get("rope_type") or one.get("type")
            if isinstance(kind, str) and kind not in UNSCALED:
                return kind
    return ""
