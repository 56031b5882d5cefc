"""The tokenizer of a GGUF file: tokens, their types and scores, merges and special tokens, from a tokenizer.json."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType
from tokenizers import Tokenizer

from lorafit.atomic import read_errors
from lorafit.errors import ModelError
from lorafit.exporters.gguf.pre_tokenizers import NAMES, PROBE
from lorafit.exporters.gguf.source import GgufSource
from lorafit.messages import _

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
SPACE = "▁"  # stands for a space in the tokens of SentencePiece
SPECIAL = ("bos", "unk", "sep", "pad", "mask")  # eos, eot and eom come from the tokens that end an answer
END_NAMES = ("eos", "eot", "eom")
PHI3_NAME, PHI3_TOKENS = re.compile("phi-?3", re.IGNORECASE), ("<unk>", "<s>", "</s>", "<|endoftext|>")
ADDED_SCORE, UNMADE_SCORE = -1000.0, -10000.0
# Tokens that some tokenizers do not mark as special.
SPECIAL_WORDS = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
SPECIAL_MARKS = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))


@dataclass(frozen=True)
class GgufTokenizer:
    """A tokenizer in GGUF's terms, of as many tokens as the model has rows of embeddings.

    `kind` is "gpt2" (byte-level BPE, with `pre` and `merges`) or "llama" (SentencePiece, with `scores` and
    `space_prefix`). `strips` is set if spaces after special tokens belong to them, as in Phi-3.
    """

    kind: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    merges: list[str] | None
    space_prefix: bool | None
    special: dict[str, int]
    strips: bool


def read_tokenizer(source: GgufSource, rows: int) -> GgufTokenizer:
    """Return the tokenizer of `source` for a model with `rows` rows of embeddings.

    Raise ModelError for a tokenizer that llama.cpp does not know, or with more tokens than the model has rows.
    """
    content = _read_json(source.tokenizer / TOKENIZER)
    model, where = content.get("model") or {}, source.tokenizer / TOKENIZER
    if model.get("type") != "BPE":
        raise _unknown(where, str(model.get("type")))
    tokens, types = _tokens(content, rows, where)
    special = _special(source, content, rows)
    if model.get("byte_fallback"):
        scores = _scores(tokens, types, model["merges"], content["added_tokens"])
        prefix, strips = _adds_space(content), _strips(content, tokens)
        return GgufTokenizer("llama", "default", tokens, types, scores, None, prefix, special, strips)
    if "ByteLevel" not in json.dumps([content.get("pre_tokenizer"), content.get("decoder")]):
        raise _unknown(where, "BPE")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return GgufTokenizer("gpt2", _pre_tokenizer(where, special), tokens, types, None, merges, None, special, False)


def add_tokenizer(writer: GGUFWriter, tokenizer: GgufTokenizer, source: GgufSource) -> None:
    """Add the metadata of `tokenizer` and the chat template to `writer`."""
    writer.add_tokenizer_model(tokenizer.kind)
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    if tokenizer.scores is not None:
        writer.add_token_scores(tokenizer.scores)
    writer.add_token_types(tokenizer.types)
    if tokenizer.merges is not None:
        writer.add_token_merges(tokenizer.merges)
    for name, token in tokenizer.special.items():
        getattr(writer, f"add_{name}_token_id")(token)
    writer.add_add_bos_token(source.add_bos)
    writer.add_add_eos_token(False)
    if tokenizer.space_prefix is not None:
        writer.add_add_space_prefix(tokenizer.space_prefix)
    if source.chat_template:
        writer.add_chat_template(source.chat_template)


def told_name(name: str, strips: bool) -> str:
    """Return `name` with or without the word by which llama.cpp knows Phi-3.

    With it, spaces after special tokens belong to them, and a tokenizer without PHI3_TOKENS cannot be loaded.
    """
    if strips:
        return name if PHI3_NAME.search(name) else f"{name} (Phi-3)"
    return PHI3_NAME.sub("Phi 3", name)


def _strips(content: dict[str, Any], tokens: list[str]) -> bool:
    added = content.get("added_tokens") or []
    return any(token["special"] and token.get("rstrip") for token in added) and set(PHI3_TOKENS) <= set(tokens)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with read_errors(path):
            content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(_("The model's tokenizer cannot be loaded."), where=path, found=error) from None
    return content if isinstance(content, dict) else {}


def _unknown(where: Path, found: str) -> ModelError:
    return ModelError(
        _("llama.cpp does not know this model's tokenizer, so no GGUF file can be written."),
        where=where,
        found=found,
        fix=_("Export with --to merged, and serve that folder with vLLM or transformers."),
    )


def _tokens(content: dict[str, Any], rows: int, where: Path) -> tuple[list[str], list[int]]:
    """Return text and type of each token; rows without a token get a name and the type UNUSED."""
    vocabulary: dict[str, int] = content["model"]["vocab"]
    added: list[dict[str, Any]] = content.get("added_tokens") or []
    most = max([*vocabulary.values(), *(token["id"] for token in added)]) + 1
    if most > rows:
        raise ModelError(
            _("The tokenizer has more tokens than the model has rows of embeddings."),
            where=where,
            found=f"{most} > {rows}",
            fix=_("Download tokenizer.json and tokenizer_config.json of the same model into that folder."),
        )
    tokens = [f"[PAD{row}]" for row in range(rows)]
    types = [int(TokenType.UNUSED)] * rows
    byte_fallback, unknown = bool(content["model"].get("byte_fallback")), content["model"].get("unk_token")
    for text, token in vocabulary.items():
        tokens[token] = text
        is_byte = byte_fallback and len(text) == 6 and text.startswith("<0x") and text.endswith(">")
        kind = TokenType.BYTE if is_byte else TokenType.UNKNOWN if text == unknown else TokenType.NORMAL
        types[token] = int(kind)
    for one in added:
        text, special = one["content"], one["special"] or _looks_special(one["content"])
        tokens[one["id"]] = text if special else text.replace(SPACE, " ")
        types[one["id"]] = int(TokenType.CONTROL if special else TokenType.USER_DEFINED)
    return tokens, types


def _looks_special(text: str) -> bool:
    return text in SPECIAL_WORDS or any(text.startswith(start) and text.endswith(end) for start, end in SPECIAL_MARKS)


def _scores(tokens: list[str], types: list[int], merges: list[Any], added: Iterable[dict[str, Any]]) -> list[float]:
    """Return a score for each token: llama.cpp merges the pair first whose result scores highest, as the rank orders."""
    ranks: dict[str, int] = {}
    for merge in merges:
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(first + second, len(ranks))
    fixed = {token["id"] for token in added}
    return [
        ADDED_SCORE
        if token in fixed
        else 0.0
        if types[token] == TokenType.BYTE
        else -float(ranks[text])
        if text in ranks
        else UNMADE_SCORE
        for token, text in enumerate(tokens)
    ]


def _adds_space(content: dict[str, Any]) -> bool:
    """Return whether a space is put before each text between special tokens.

    A tokenizer that puts it before the first text of a row only is told as one that never does: a row of a chat begins
    with a special token.
    """
    steps = [content.get("normalizer"), content.get("pre_tokenizer")]
    for step in steps:
        for one in (step or {}).get("normalizers") or (step or {}).get("pretokenizers") or [step]:
            if one and one.get("type") == "Prepend":
                return True
            if one and one.get("type") == "Metaspace":
                return str(one.get("prepend_scheme", "always")) == "always"
    return False


def _special(source: GgufSource, content: dict[str, Any], rows: int) -> dict[str, int]:
    """Return the IDs of special tokens by llama.cpp's names."""
    path = source.tokenizer / TOKENIZER_CONFIG
    told = _read_json(path) if path.is_file() else {}
    ids = {token["content"]: token["id"] for token in content.get("added_tokens") or []}
    special: dict[str, int] = {}
    for name in SPECIAL:
        text = told.get(f"{name}_token")
        text = text.get("content") if isinstance(text, dict) else text
        token = ids.get(text) if text else source.config.get(f"{name}_token_id")
        if isinstance(token, int) and 0 <= token < rows:
            special[name] = token
    if not 0 < len(source.end_tokens) <= len(END_NAMES):
        raise ModelError(
            _("A GGUF file can name one to three tokens that end an answer."),
            where=source.tokenizer,
            found=", ".join(map(str, source.end_tokens)) or "-",
            fix=_("Name fewer tokens as eos_token_id in generation_config.json."),
        )
    return special | dict(zip(END_NAMES, source.end_tokens, strict=False))


def _pre_tokenizer(where: Path, special: dict[str, int]) -> str:
    """Return llama.cpp's name of the pre-tokenizer.

    The text is hashed as the tokenizer itself encodes it, then with bos before it, then without special tokens: a copy of
    a known tokenizer may put other special tokens around a text.
    """
    tokenizer = Tokenizer.from_file(str(where))
    ids = tokenizer.encode(PROBE, add_special_tokens=False).ids
    bos = [special[name] for name in ("bos",) if name in special]
    for tokens in (tokenizer.encode(PROBE).ids, [*bos, *ids], ids):
        digest = hashlib.sha256(str(tokens).encode()).hexdigest()
        if digest in NAMES:
            return NAMES[digest]
    raise _unknown(where, f"sha256 {digest}")
