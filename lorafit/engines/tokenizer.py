"""Tokenizers and chat templates: the only module that wraps those of transformers."""

import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from lorafit.atomic import read_errors
from lorafit.data.conversation import TOOLS, Conversation, Message
from lorafit.data.render import Span, TemplateRefused, place_system
from lorafit.data.target_spans import END
from lorafit.errors import ConfigError, DiskError, ModelError
from lorafit.messages import _
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
THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning")  # of a message; templates differ in the name


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

    def render_text(self, messages: Conversation, add_generation_prompt: bool, date_string: str) -> str:
        """Return the conversation as the template renders it, the same on every day. Raise TemplateRefused."""
        from jinja2 import TemplateError  # with transformers it is loaded already; a plan needs neither

        tools = next((json.loads(message.content) for message in messages if message.role == TOOLS), None)
        calls = any(message.calls for message in messages)
        for as_text in (
            (False, True) if calls else (False,)
        ):  # some templates want a call's arguments as an object, others as text
            try:
                return str(
                    self.inner.apply_chat_template(
                        [self.message_dict(message, as_text) for message in messages if message.role != TOOLS],
                        tools=tools,
                        tokenize=False,
                        add_generation_prompt=add_generation_prompt,
                        date_string=date_string,
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

    def save(self, folder: Path) -> None:
        """Write the tokenizer, its chat template and generation_config.json (for the stop IDs) into `folder`."""
        self.inner.save_pretrained(folder)
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

    def message_dict(self, message: Message, arguments_as_text: bool) -> dict[str, Any]:
        """Return a message as the dict that templates read."""
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.name:
            turn["name"] = message.name
        if message.thought:
            turn |= dict.fromkeys(self._thought_keys, message.thought)
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
