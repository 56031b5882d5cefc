"""The files beside the weights of an exported model: settings, tokenizer, chat template, end tokens and README.md."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateSyntaxError

from lorafit import __version__
from lorafit.engines.exported_template import exported_template
from lorafit.engines.tokenizer import GENERATION_CONFIG, ChatTokenizer, load_tokenizer
from lorafit.errors import ExportError
from lorafit.exporters.base import ExportSource, MixPart
from lorafit.exporters.rounding import TORCH
from lorafit.exporters.texts import chat_texts, template_ids
from lorafit.messages import _
from lorafit.models.spec import read_config

# Marks of the assistant's text, which only training reads. Other programs refuse a template with them.
GENERATION_MARK = re.compile(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}")
# What loaders of the base need besides weights and tokenizer, and the terms of its license.
OTHER_FILES = ("*.py", "*processor_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*")
SHOWN = 60  # characters of a template in an error
DTYPE_KEYS = ("dtype", "torch_dtype")


def write_config(base: Path, folder: Path, dtype: str | None, settings: dict[str, Any] | None = None) -> None:
    """Write the base's config.json with other `settings` into `folder`.

    `dtype`: the type of all weights, as in safetensors; None: mixed.
    """
    facts = read_config(base) | (settings or {})
    facts.pop("_name_or_path", None)  # a folder of the machine that saved the base
    if dtype is not None:
        _set_dtype(facts, TORCH[dtype])
        if not any(key in facts for key in DTYPE_KEYS):
            facts["torch_dtype"] = TORCH[dtype]
    (folder / "config.json").write_text(json.dumps(facts, ensure_ascii=False, indent=2) + "\n", "utf-8")


def _set_dtype(facts: dict[str, Any], dtype: str) -> None:
    """Change the dtype in `facts` and in the settings of parts of the model, where they name one."""
    for key, value in facts.items():
        if isinstance(value, dict):
            _set_dtype(value, dtype)
        elif key in DTYPE_KEYS and value is not None:
            facts[key] = dtype


def write_chat_files(source: ExportSource, folder: Path) -> None:
    """Write the tokenizer with the template of the training, all end tokens, and other files of the base."""
    for pattern in OTHER_FILES:
        for path in sorted(source.base.folder.glob(pattern)):
            shutil.copyfile(path, folder / path.name)
    write_tokenizer(source, folder)


def write_tokenizer(source: ExportSource, folder: Path) -> None:
    """Write the tokenizer with the template of the training, which other programs can read, and all end tokens."""
    source.tokenizer.save(folder, exported_template(source.tokenizer))
    for path in (folder / "tokenizer_config.json", *folder.rglob("*.jinja")):
        if path.is_file():
            path.write_text(without_marks(path.read_text("utf-8")), "utf-8")
    known = folder / GENERATION_CONFIG
    facts = json.loads(known.read_text("utf-8")) if known.is_file() else {"_from_model_config": True}
    facts["eos_token_id"] = source.tokenizer.end_ids
    known.write_text(json.dumps(facts, ensure_ascii=False, indent=2) + "\n", "utf-8")


def without_marks(template: str) -> str:
    """Return a chat template without `{% generation %}`: a comment with the same effect on white space replaces it."""
    return GENERATION_MARK.sub(r"{#\1 \2#}", template)


def require_chat(source: ExportSource, folder: Path) -> tuple[dict[str, Any], list[int]]:
    """Return the template's entry of the certificate, and the end tokens, as read from the files in `folder`.

    Raises ExportError if tokenizer, template or end tokens of the export are not those of the training.
    """
    written = load_tokenizer(folder, trust_remote_code=source.trust_remote_code)
    require_template(source, written)
    require_plain(written.inner.get_chat_template())
    stops = json.loads((folder / GENERATION_CONFIG).read_text("utf-8"))["eos_token_id"]
    if written.stop_ids != source.tokenizer.stop_ids or stops != source.tokenizer.end_ids:
        raise ExportError(
            _("The end tokens of the export are not those of the training."), found=stops, fix=_("Please report it.")
        )
    return template_facts(written, source.chat.date_string), stops


def require_template(source: ExportSource, written: ChatTokenizer) -> None:
    """Raise ExportError if tokenizer and template of the export give other tokens than those of the training."""
    found, wanted = (template_ids(tokenizer, source.chat.date_string) for tokenizer in (written, source.tokenizer))
    if found != wanted:
        what = _("The chat template of the export gives other tokens than the one of the training.")
        raise ExportError(what, found=written.inner.get_chat_template()[:SHOWN], fix=_("Please report it."))


def require_plain(template: str) -> None:
    """Raise ExportError for a template that programs without transformers' own tags cannot read."""
    try:
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
    except TemplateSyntaxError as error:
        what = _("Other programs cannot read the chat template of the export.")
        raise ExportError(what, found=error, fix=_("Please report it.")) from None


def require_same_split(tokenize: Callable[[str], list[int]], source: ExportSource, problem: str) -> int:
    """Return the number of texts that `tokenize`, of another program, splits into the tokens of the training.

    Raises ExportError, which begins with `problem`, for a text that it splits otherwise.
    """
    texts = list(chat_texts(source))
    for text, ids in texts:
        if (found := tokenize(text)) != ids:
            at = next((at for at, pair in enumerate(zip(found, ids, strict=False)) if pair[0] != pair[1]), len(found))
            around = source.tokenizer.decode_with_special(ids[max(at - 3, 0) : at + 3])
            told = f"{around!r}: {found[at : at + 3]}, {ids[at : at + 3]}"
            raise ExportError(problem, found=told, fix=_("Export with --to merged instead, and please report it."))
    return len(texts)


def template_facts(tokenizer: ChatTokenizer, date: str) -> dict[str, Any]:
    """Return what the certificate says of a chat template: the digest of its token IDs on the public text."""
    ids = template_ids(tokenizer, date)
    digest = hashlib.sha256(json.dumps(ids).encode()).hexdigest()
    return {"texts": len(ids), "token_ids": digest, "date": date}


def mix_card(source: ExportSource, parts: Sequence[MixPart]) -> str:
    """Return the README.md of a mix of adapters, `parts`, on the base model of `source`."""
    base = source.base.name if not Path(source.base.name).is_absolute() else Path(source.base.name).name
    how = _(
        "Several LoRA adapters for `{base}`, mixed by lorafit {version} into one: the weighted sum of their deltas."
    )
    columns = (_("adapter"), _("weight"))
    head = f"| {columns[0]} | {columns[1]} |"
    rows = "\n".join(f"| {part.name} | {part.weight:g} |" for part in parts)
    return f"""---
base_model: {base}
library_name: peft
tags: [lora, lorafit]
---
# {" + ".join(part.name for part in parts)}

{how.format(base=base, version=__version__)}

{head}
|---|---|
{rows}
"""


def folder_title(source: ExportSource) -> str:
    """Return the name of the run, else that of the adapter's folder."""
    return source.chat.run or (source.trained.run.name if source.trained else source.adapter.resolve().name)
