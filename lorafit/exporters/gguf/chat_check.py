"""The chat of a GGUF file as llama.cpp reads it: template, tokens, bos and end tokens are those of the training."""

from copy import copy
from typing import Any

from lorafit.data.conversation import Message
from lorafit.data.render import TemplateRefused
from lorafit.engines.tokenizer import ChatTokenizer
from lorafit.errors import ExportError
from lorafit.exporters.base import ExportSource
from lorafit.exporters.chat_files import require_plain, require_same_split, require_template
from lorafit.exporters.gguf.runtime import LlamaCpp
from lorafit.messages import _

SHOWN = 40  # characters of a text in an error


def require_chat_in(model: LlamaCpp, source: ExportSource, template: str) -> int:
    """Return the number of texts that llama.cpp splits into the tokens of the training.

    Raises ExportError if a text, the template, or the tokens that begin and end a text differ.
    """
    tokenizer = source.tokenizer
    if model.template != template:
        raise _differs(_("The chat template in the file is not the one of the training."), model.template[:SHOWN])
    require_template(source, ChatTokenizer(copy(tokenizer.inner), tokenizer.folder, template))
    require_plain(template)
    starts = begins_with_bos(tokenizer, source.chat.date_string)
    if model.adds_bos != starts:
        raise _differs(_("llama.cpp would start a text with other tokens than the training."), f"bos: {model.adds_bos}")
    if missing := [token for token in tokenizer.end_ids if not model.ends(token)]:
        raise _differs(_("The end tokens of the export are not those of the training."), missing)
    if model.eos != tokenizer.end_ids[0]:
        raise _differs(_("The end tokens of the export are not those of the training."), f"eos: {model.eos}")
    return require_same_split(
        model.tokenize, source, _("llama.cpp splits a text into other tokens than the training does.")
    )


def begins_with_bos(tokenizer: ChatTokenizer, date_string: str) -> bool:
    """Return whether each row of the training begins with the bos token: whether the template writes it."""
    bos = tokenizer.inner.bos_token
    try:
        text = tokenizer.render_text([Message("user", "?")], True, date_string)
    except TemplateRefused:
        return False
    return bool(bos) and text.startswith(bos)


def _differs(what: str, found: Any) -> ExportError:
    fix = _("Export with --to merged instead, and please report it.")
    return ExportError(what, found=found, fix=fix)
