"""The format of a chat template's prompts: the texts around the messages, found by rendering short conversations."""

from collections.abc import Sequence
from dataclasses import dataclass

from lorafit.data.conversation import Conversation, Message
from lorafit.data.render import TemplateRefused, place_system
from lorafit.engines.tokenizer import ChatTokenizer
from lorafit.errors import ExportError
from lorafit.messages import _

SYSTEM, QUESTION, ANSWER, LAST = (
    Message("system", "s4y5t6"),
    Message("user", "q1u2e3"),
    Message("assistant", "a7n8s9"),
    Message("user", "l3a2s1"),
)


@dataclass(frozen=True)
class ChatFormat:
    """The texts around the messages of a prompt, in which user and assistant alternate.

    The prompt is `start`, first question, `answer`, first answer, `question`, second question, ..., `prompt`. A system
    text and `after_system` stand before the first question, and `system` replaces `start`. With `system_last` they stand
    before the last question, and `start` is not replaced.
    """

    start: str
    system: str
    after_system: str
    answer: str
    question: str
    prompt: str
    system_last: bool

    def render(self, conversation: Conversation) -> str:
        """Return the prompt for the next answer; the last message of `conversation` is the user's."""
        system = conversation[0].content if conversation[0].role == "system" else ""
        turns = conversation[1:] if system else conversation
        place = len(turns) - 1 if self.system_last else 0
        parts = [self.system if system and not self.system_last else self.start]
        for i, turn in enumerate(turns):
            if i:
                parts.append(self.answer if turn.role == "assistant" else self.question)
            if system and i == place:
                parts += [system, self.after_system]
            parts.append(turn.content)
        return "".join([*parts, self.prompt])


def prompt_text(conversation: Conversation, tokenizer: ChatTokenizer, date_string: str) -> str:
    """Return the prompt for the next answer as in the training. Raises ExportError if the template refuses it."""
    turns = place_system(conversation, None, tokenizer.takes_system)
    try:
        return tokenizer.render_text(turns, True, date_string)
    except TemplateRefused as refusal:
        raise not_faithful(tokenizer, _("rejected by the chat template: {reason}").format(reason=refusal)) from None


def find_format(tokenizer: ChatTokenizer, date_string: str) -> ChatFormat:
    """Return the texts around the messages as in three short conversations. Raises ExportError if a message is lost."""

    def texts(conversation: Conversation, order: Sequence[Message]) -> list[str]:
        text = prompt_text(conversation, tokenizer, date_string)
        return _texts_around(text, order, tokenizer)

    start, answer, question, prompt = texts([QUESTION, ANSWER, LAST], [QUESTION, ANSWER, LAST])
    system, after_system, _prompt = texts([SYSTEM, QUESTION], [SYSTEM, QUESTION])
    long = prompt_text([SYSTEM, QUESTION, ANSWER, LAST], tokenizer, date_string)
    last = long.find(SYSTEM.content) > long.find(QUESTION.content)
    return ChatFormat(start, system, after_system, answer, question, prompt, last)


def _texts_around(text: str, messages: Sequence[Message], tokenizer: ChatTokenizer) -> list[str]:
    parts = []
    for message in messages:
        before, found, text = text.partition(message.content)
        if not found:
            raise not_faithful(tokenizer, _("no message of the role {role}").format(role=message.role))
        parts.append(before)
    return [*parts, text]


def not_faithful(tokenizer: ChatTokenizer, found: str) -> ExportError:
    """Return the error for a chat template that cannot be written for Ollama."""
    return ExportError(
        _("This chat template cannot be written as a template of Ollama."),
        where=tokenizer.folder,
        found=found,
        fix=_("Export with --to gguf. LM Studio and llama.cpp use the chat template in the GGUF file itself."),
    )
