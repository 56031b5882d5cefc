"""Tokenizers and chat templates: the only module that wraps those of transformers."""

import copy
import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cached_property, lru_cache
from os.path import commonprefix
from pathlib import Path
from typing import Any, Literal

from lorafit.atomic import read_errors
from lorafit.data.conversation import END_OF_THOUGHT, TOOLS, Conversation, Message
from lorafit.data.render import Span, TemplateRefused, place_system
from lorafit.data.target_spans import END
from lorafit.data.thoughts import split_thought
from lorafit.errors import ConfigError, DiskError, ModelError
from lorafit.messages import _, listed
from lorafit.paths import require_utf8_name, user_path
from lorafit.units import TEMPLATE_DATE

# For tokenizers without a chat template. The markers are plain text to such a tokenizer, so each answer also ends with
# the tokenizer's own eos token.
CHATML = r"""{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}
{%- if m.role == 'assistant' and eos_token != '<|im_end|>' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
CLOCK = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
GENERATION_CONFIG = "generation_config.json"
PROBE = "a1b2c3"
KNOWS_THOUGHTS = re.compile("think|thought|reasoning", re.IGNORECASE)
THOUGHT_SWITCHES = ("enable_thinking", "thinking")  # variables of templates
THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning")  # of a message; templates differ in the name


Thinking = Literal["on", "off", "as_trained"]


def load_tokenizer(folder: Path, *, template: str | None = None, trust_remote_code: bool = False) -> "ChatTokenizer":
    """Load the tokenizer in `folder`; `template` (Jinja) replaces its own chat template.

    Raise ConfigError for a name that needs a UTF-8 locale, ModelError if it cannot be loaded or does not report character offsets (a slow tokenizer).
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer  # takes half a second, and warns unless the variable above is set
    from transformers.utils.logging import set_verbosity_error

    set_verbosity_error()
    require_utf8_name(folder)
    try:
        with read_errors(folder):
            inner = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except DiskError:
        raise
    except Exception as error:  # the type depends on the fault: OSError, ValueError, KeyError, the Rust library's own
        fix = _("Download tokenizer.json and tokenizer_config.json of the same model into that folder.")
        raise ModelError(_("The model's tokenizer cannot be loaded."), where=folder, found=error, fix=fix) from None
    if not inner.is_fast:
        fix = _("Use a model with a tokenizer.json.")
        raise ModelError(
            _("The tokenizer does not report the positions of its tokens in the text."),
            where=folder,
            found=type(inner).__name__,
            fix=fix,
        )
    return ChatTokenizer(inner, folder, template)


@lru_cache(maxsize=2)
def shared_tokenizer(folder: Path, template: str | None, trust_remote_code: bool) -> "ChatTokenizer":
    """Load a tokenizer once per process. A `functools.partial` of this function can be sent to other processes."""
    return load_tokenizer(folder, template=template, trust_remote_code=trust_remote_code)


class ChatTokenizer:
    """A tokenizer with a chat template: the `Tokenizer` protocol of rendering, and methods for chat and for saving."""

    def __init__(self, inner: Any, folder: Path, template: str | None = None) -> None:
        self.inner, self.folder = inner, folder
        self.uses_default_template = not (
            template or inner.chat_template
        )  # the model was not made for chat: warn the user
        inner.chat_template = template or inner.chat_template or CHATML
        self.thinking: bool | None = None  # the value of the template's switch; None: the template's own
        self.untrained_end = ""  # left out of prompts

    @classmethod
    def of(cls, other: "ChatTokenizer", template: str) -> "ChatTokenizer":
        """Return a tokenizer with the tokens of `other` and another chat template."""
        return cls(copy.copy(other.inner), other.folder, template)

    def answering(self, thinking: Thinking, untrained_end: str) -> "ChatTokenizer":
        """Return this tokenizer with other prompts: with or without a thought, or as in the training.

        `untrained_end` is the end of the template's prompt that the training's samples do not have. Raise ConfigError if
        the template has no switch for thoughts.
        """
        other = copy.copy(self)
        other.thinking, other.untrained_end = None, untrained_end if thinking == "as_trained" else ""
        if thinking == "as_trained":
            return other
        if self.thought_switch is None:
            raise ConfigError(
                _("The chat template has no switch for thoughts."),
                where=f"--thinking {thinking}",
                found=_("variables looked for: {names}").format(names=listed(THOUGHT_SWITCHES)),
                fix=_("Remove --thinking: prompts are then as in the training."),
            )
        other.thinking = thinking == "on"
        return other

    def render_text(self, messages: Conversation, add_generation_prompt: bool, date_string: str) -> str:
        """Return the conversation as the template renders it, the same on every day. Raise TemplateRefused."""
        text = self._rendered(messages, add_generation_prompt, date_string, self.thinking)
        as_usual = add_generation_prompt and self.untrained_end and text.endswith(self.generation_prompt)
        return text.removesuffix(self.untrained_end) if as_usual else text

    def _rendered(self, messages: Conversation, prompt: bool, date_string: str, thinking: bool | None) -> str:
        from jinja2 import TemplateError  # with transformers it is loaded already; a plan needs neither

        tools = next((json.loads(message.content) for message in messages if message.role == TOOLS), None)
        calls = any(message.calls for message in messages)
        switch = {} if thinking is None or self.thought_switch is None else {self.thought_switch: thinking}
        for as_text in (
            (False, True) if calls else (False,)
        ):  # some templates want a call's arguments as an object, others as text
            try:
                return str(
                    self.inner.apply_chat_template(
                        [self.message_dict(message, as_text) for message in messages if message.role != TOOLS],
                        tools=tools,
                        tokenize=False,
                        add_generation_prompt=prompt,
                        date_string=date_string,
                        **switch,
                        chat_template=_with_fixed_date(self.inner.get_chat_template(), date_string),
                    )
                )
            except (TemplateError, TypeError) as error:
                refusal = TemplateRefused(str(error))
        raise refusal

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        """Return the token IDs of `text`, without added special tokens, and the character span of each token."""
        encoded = self.inner(text, add_special_tokens=False, return_offsets_mapping=True)
        return encoded["input_ids"], encoded["offset_mapping"]

    def encode_many(self, texts: Sequence[str]) -> list[tuple[list[int], list[Span]]]:
        """Return the result of `encode_with_offsets` for several texts, computed on all cores."""
        encoded = self.inner.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [(one.ids, one.offsets) for one in encoded]

    def plain_text(self, text: str) -> str:
        """Return `text` between bos and eos: bos where the tokenizer itself adds it, eos where it has one.

        A bos at the start of `text` is not repeated.
        """
        return f"{self._bos if self._bos and not text.startswith(self._bos) else ''}{text}{self.inner.eos_token or ''}"

    @cached_property
    def _bos(self) -> str:
        """The bos token if the tokenizer itself puts it before a text, else an empty string."""
        bos = self.inner.bos_token_id
        return self.inner.bos_token if bos is not None and self.inner("x")["input_ids"][:1] == [bos] else ""

    def prompt_ids(self, messages: Conversation, date_string: str, system_prompt: str | None = None) -> list[int]:
        """Return the token IDs that prompt the assistant's next message. Raise ModelError if the template refuses."""
        turns = place_system(messages, system_prompt, self.takes_system)
        try:
            text = self.render_text(turns, True, date_string)
        except TemplateRefused as refusal:
            raise ModelError(
                _("The chat template rejects this conversation."), where=self.folder, found=refusal
            ) from None
        return self.encode_with_offsets(text)[0]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids` without special tokens."""
        return str(self.inner.decode(list(ids), skip_special_tokens=True))

    def decode_with_special(self, ids: Iterable[int]) -> str:
        """Return the unchanged text of `ids`, special tokens included."""
        return str(self.inner.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def save(self, folder: Path, template: str | None = None) -> None:
        """Write the tokenizer, its chat template and generation_config.json (for the stop IDs) into `folder`.

        `template` replaces the chat template in the files.
        """
        inner = self.inner
        if template is not None and template != inner.get_chat_template():
            inner = copy.copy(inner)
            named = isinstance(inner.chat_template, dict)
            inner.chat_template = {**inner.chat_template, "default": template} if named else template
        inner.save_pretrained(folder)
        if (self.folder / GENERATION_CONFIG).is_file():
            shutil.copy(self.folder / GENERATION_CONFIG, folder / GENERATION_CONFIG)

    @cached_property
    def takes_system(self) -> bool:
        """True if the template renders a system message; some templates refuse it, some omit it."""
        try:
            return PROBE in self.render_text([Message("system", PROBE), Message("user", "?")], True, TEMPLATE_DATE)
        except TemplateRefused:
            return False

    @cached_property
    def knows_thoughts(self) -> bool:
        """True if the template mentions thoughts of a reasoning model."""
        return KNOWS_THOUGHTS.search(self.inner.get_chat_template()) is not None

    @cached_property
    def generation_prompt(self) -> str:
        """The text that the template writes behind a single question; "" if it cannot be found."""
        try:
            head, prompt = (self._rendered([Message("user", PROBE)], on, TEMPLATE_DATE, None) for on in (False, True))
        except TemplateRefused:
            return ""
        return prompt[len(commonprefix([head, prompt])) :]  # noqa: RUF071 (by character)

    @cached_property
    def thought_switch(self) -> str | None:
        """The variable by which the template prompts with or without thoughts, or None."""
        template = self.inner.get_chat_template()
        for name in THOUGHT_SWITCHES:
            if re.search(rf"\b{name}\b", template) and self._differs_by(name):
                return name
        return None

    def _differs_by(self, switch: str) -> bool:
        other = copy.copy(self)
        other.__dict__["thought_switch"] = switch
        try:
            on, off = (other._rendered([Message("user", PROBE)], True, TEMPLATE_DATE, value) for value in (True, False))
        except TemplateRefused:
            return False
        return on != off

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """IDs that end an answer: eos of tokenizer and generation_config.json, and the template's end-of-turn token."""
        return frozenset(self.end_ids)

    @cached_property
    def end_ids(self) -> list[int]:
        """The same IDs in order: first the one that the template writes after an answer, which the training teaches."""
        found = (*self._end_of_turn_ids(), self.inner.eos_token_id, *self._config_stops())
        return list(dict.fromkeys(token for token in found if token is not None))

    def _config_stops(self) -> list[int]:
        path = self.folder / GENERATION_CONFIG
        if not path.is_file():
            return []
        try:
            eos = json.loads(path.read_text("utf-8")).get("eos_token_id")
        except (ValueError, AttributeError) as error:
            fix = _("Download that file again, or delete it.")
            raise ModelError(
                _("The model's generation settings cannot be read."), where=path, found=error, fix=fix
            ) from None
        return eos if isinstance(eos, list) else [eos]

    @cached_property
    def end_of_turn(self) -> str:
        """Text that the template writes after an answer, up to the second white space; "" if it cannot be found."""
        try:
            text = self.render_text([Message("user", "?"), Message("assistant", PROBE)], False, TEMPLATE_DATE)
        except TemplateRefused:
            return ""
        return (END.match(text.partition(PROBE)[2]) or [""])[0]

    @cached_property
    def _special_tokens(self) -> re.Pattern[str]:
        words = sorted((token.content for token in self.inner.added_tokens_decoder.values()), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, filter(None, words))) or r"(?!)")

    def special_token_at(self, text: str, at: int) -> str:
        """Return the special token that begins at character `at` of `text`, or an empty string."""
        found = self._special_tokens.match(text, at)
        return found[0] if found else ""

    @cached_property
    def _thought_keys(self) -> list[str]:
        """The keys under which the template reads a message's thought; most templates read none."""
        return [key for key in THOUGHT_KEYS if re.search(rf"[.'\"]{key}\b", self.inner.get_chat_template())]

    @cached_property
    def _thought_only_in_key(self) -> bool:
        """True if the template writes a thought otherwise in the content than under its key, where it belongs."""
        if not self._thought_keys:
            return False
        self.__dict__["_thought_only_in_key"] = False  # while the two forms are compared
        ask, thought = Message("user", "?"), f"<think>\n{PROBE}\n{END_OF_THOUGHT}\n\n!"
        try:
            inside, keyed = (
                "".join(self.render_text([ask, answer], False, TEMPLATE_DATE).split())
                for answer in (Message("assistant", thought), Message("assistant", "!", thought=PROBE))
            )
        except TemplateRefused:
            return False
        return PROBE in keyed and inside != keyed

    def message_dict(self, message: Message, arguments_as_text: bool) -> dict[str, Any]:
        """Return a message as the dict that templates read."""
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.name:
            turn["name"] = message.name
        thought = message.thought
        if message.role == "assistant" and END_OF_THOUGHT in message.content and self._thought_only_in_key:
            thought, turn["content"] = split_thought(message)
        if thought:
            turn |= dict.fromkeys(self._thought_keys, thought)
        if message.calls:
            calls = json.loads(message.calls)
            if arguments_as_text:
                calls = [call | {"arguments": json.dumps(call["arguments"], ensure_ascii=False)} for call in calls]
            turn["tool_calls"] = [{"type": "function", "function": call} for call in calls]
        return turn

    def _end_of_turn_ids(self) -> list[int]:
        """Return the first token of `end_of_turn` if it is a special token."""
        first = self.encode_with_offsets(self.end_of_turn.strip())[0][:1]
        return first if first and first[0] in self.inner.added_tokens_decoder else []


def read_template(given: str | None) -> str | None:
    """Return the chat template of --chat_template, which is a file or Jinja text. Raise ConfigError if unreadable."""
    if given is None or "{" in given:
        return given
    try:
        return user_path(given).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        fix = _("Give a file with a Jinja template, or the template itself.")
        raise ConfigError(_("The chat template cannot be read."), where="chat_template", found=error, fix=fix) from None


@lru_cache(maxsize=4)
def _with_fixed_date(template: str, date_string: str) -> str:
    """Replace each `strftime_now` call in `template` by `date_string`, or by 26 Jul 2024 if that is no such date."""
    try:
        date = datetime.strptime(date_string, "%d %b %Y")
    except ValueError:
        date = datetime(2024, 7, 26)
    return CLOCK.sub(lambda call: repr(date.strftime(call[2])), template)
