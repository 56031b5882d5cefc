"""Selection of the validation rows: whole groups of equal content, the groups with the smallest keys.

The order of the rows does not affect the selection.

Dimensions: N rows.
"""

import hashlib
import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lorafit.data.conversation import Conversation
from lorafit.data.micro_batch import Bool
from lorafit.messages import _

MAX_VALID_ROWS = 200  # limit if val_size is a share: enough for a stable mean, and fast to evaluate
KEY = np.dtype("S32")
Keys = NDArray[np.bytes_]


def content_key(conversation: Conversation) -> bytes:
    """Return the sha256 of the roles, contents, calls and thoughts of all messages, and of those that are not learned.

    Rows with equal keys must be on the same side of a split.
    """
    turns = [
        (turn.role, turn.content, *filter(None, (turn.calls, turn.thought, "" if turn.learned else "not learned")))
        for turn in conversation
    ]
    return hashlib.sha256(json.dumps(turns, ensure_ascii=False).encode()).digest()


def as_keys(data: bytes) -> Keys:
    """Return concatenated keys as an array [N]."""
    return np.frombuffer(data, KEY)


def key_bytes(keys_N: Keys) -> set[bytes]:
    """Return the distinct keys, with the trailing zero bytes that numpy removes."""
    return {key.ljust(KEY.itemsize, b"\0") for key in np.unique(keys_N).tolist()}


def validation_keys(keys: Sequence[bytes], val_size: float) -> tuple[set[bytes], list[str]]:
    """Return the keys of the validation groups, and notes for the user."""
    rows, notes = validation_mask(as_keys(b"".join(keys)), val_size)
    return {key for key, chosen in zip(keys, rows, strict=True) if chosen}, notes


def validation_mask(keys_N: Keys, val_size: float) -> tuple[Bool, list[str]]:
    """Return a mask [N] of the validation rows, and notes for the user.

    At least one group is selected and one is left for training, unless val_size is 0 or all rows are equal.
    """
    rows = len(keys_N)
    chosen_N = np.zeros(rows, np.bool_)
    if val_size == 0:
        return chosen_N, []
    if (keys_N == keys_N[:1]).all():
        return chosen_N, [_("All rows are the same conversation: no validation set.")]
    wanted = min(MAX_VALID_ROWS, round(val_size * rows)) if val_size < 1 else int(val_size)
    notes = []
    if val_size >= 1 and wanted > rows // 2:
        wanted = rows // 2
        notes.append(
            _("val_size is more than half of the rows: the validation set is limited to half of them, {n}.").format(
                n=wanted
            )
        )
    order_N = np.argsort(keys_N, kind="stable")
    ends = _group_ends(keys_N[order_N])
    enough = int(np.searchsorted(ends, wanted))
    stop = ends[min(enough, len(ends) - 1)]
    if stop == rows:  # leave the last group for training
        stop = ends[-2]
    chosen_N[order_N[:stop]] = True
    return chosen_N, notes


def _group_ends(sorted_N: Keys) -> NDArray[np.int64]:
    """Return the end of each group of equal keys."""
    return np.append(np.flatnonzero(sorted_N[1:] != sorted_N[:-1]) + 1, len(sorted_N))
