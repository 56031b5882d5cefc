"""The chat template for other programs, which call it with its default settings: its prompts are those of the training."""

from collections.abc import Iterator

from lorafit.data.conversation import Conversation, Message
from lorafit.data.render import TemplateRefused
from lorafit.engines.tokenizer import ChatTokenizer
from lorafit.errors import ExportError
from lorafit.messages import _
from lorafit.units import TEMPLATE_DATE

ASK, ANSWER = Message("user", "?"), Message("assistant", "!")
THOUGHT = Message("assistant", "<think>\nWhy?\n</think>\n\n!")
CONVERSATIONS: tuple[Conversation, ...] = (
    [ASK],
    [Message("system", "Be brief."), ASK],
    [ASK, ANSWER, ASK],
    [ASK, THOUGHT, ASK],
    [ASK, ANSWER],
    [ASK, ANSWER, ASK, THOUGHT],
)


def exported_template(tokenizer: ChatTokenizer) -> str:
    """Return a template whose default output is that of `tokenizer`, which may leave out or choose thoughts.

    The output is compared by token IDs. Raises ExportError if no such template is found.
    """
    own: str = tokenizer.inner.get_chat_template()
    wanted = _outputs(tokenizer)
    for template in _candidates(own, tokenizer):
        if _outputs(ChatTokenizer.of(tokenizer, template)) == wanted:
            return template
    raise ExportError(
        _("The chat template cannot be written so that its prompts are those of the training by default."),
        where="chat_template",
        found=_("the samples do not have the end of the template's prompt: {text}").format(
            text=repr(tokenizer.untrained_end)
        ),
        fix=_("Train with a chat template that starts an answer as it prompts for it."),
    )


def _candidates(own: str, tokenizer: ChatTokenizer) -> Iterator[str]:
    """Yield `own`, then with another default of its switch, then without the end of its prompt."""
    yield own
    switch, end = tokenizer.thought_switch, tokenizer.untrained_end
    values = (tokenizer.thinking,) if tokenizer.thinking is not None else (False, True)
    for value in values if switch else ():
        yield f"{{%- if {switch} is not defined %}}{{%- set {switch} = {str(value).lower()} %}}{{%- endif %}}" + own
    for written in dict.fromkeys((end.replace("\n", "\\n"), end)) if end else ():
        at = own.rfind(written)
        while at >= 0:  # the generation prompt is usually at the end of a template
            yield own[:at] + own[at + len(written) :]
            at = own.rfind(written, 0, at)


def _outputs(tokenizer: ChatTokenizer) -> list[list[int]] | None:
    """Return the token IDs of conversations and their prompts; None for a template that is not valid."""
    found = []
    for turns in CONVERSATIONS:
        try:
            text = tokenizer.render_text(turns, turns[-1].role == "user", TEMPLATE_DATE)
        except TemplateRefused:
            text = ""  # some templates take no system message
        found.append(list(tokenizer.encode_with_offsets(text)[0]))
    return found if any(found) else None
