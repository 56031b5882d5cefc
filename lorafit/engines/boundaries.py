"""The lengths at which a model computes something else: windows, chunks, blocks, and numbers of selected tokens.

The short samples of a check never reach such a length. So the check makes the lengths smaller, in settings and modules.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

KINDS = {  # by kind: a name in a config, and the names of settings and attributes with this length
    "window": ("sliding_window", re.compile(r"(^|_)(window|window_size)$")),
    "chunk": ("attention_chunk_size", re.compile(r"(^|_)(chunk_size|block_size)$")),
    "selection": ("index_topk", re.compile(r"index.*top_?k$|(^|_)(topk_tokens|budget|compress_(ratio|rate))$")),
}
SMALL = 4  # tokens


@contextmanager
def small_boundaries(owners: Iterable[object], kinds: Iterable[str] = KINDS) -> Iterator[None]:
    """Set every boundary of `kinds` above SMALL tokens, among the attributes of `owners`, to SMALL inside."""
    names = [KINDS[kind][1] for kind in kinds]
    changed = [
        (owner, name, value)
        for owner in {id(owner): owner for owner in owners}.values()
        for name, value in vars(owner).items()
        if type(value) is int and value > SMALL and any(pattern.search(name) for pattern in names)
    ]
    try:
        for owner, name, _value in changed:
            setattr(owner, name, SMALL)
        yield
    finally:
        for owner, name, value in changed:
            setattr(owner, name, value)


def boundaries_of(config: object) -> dict[str, int]:
    """Return the lengths in tokens that the text settings `config` of transformers name, by kind."""
    kinds = getattr(config, "layer_types", None) or []
    found = {kind: getattr(config, name, None) for kind, (name, _pattern) in KINDS.items()}
    if getattr(config, "use_sliding_window", True) is False or (kinds and "sliding_attention" not in kinds):
        found["window"] = None
    return {kind: value for kind, value in found.items() if type(value) is int and value > SMALL}
