"""Preprocessing of a row into a sample, with all settings that affect it in one value.

The value is sent to worker processes and is part of the cache key.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from lorafit.config import TrainConfig
from lorafit.data.conversation import Conversation
from lorafit.data.formats import KEYS, ReadRow, recognize_format
from lorafit.data.render import Rendered, TemplatedText, Tokenizer, TrainOn, apply_template, render
from lorafit.data.thoughts import without_thoughts
from lorafit.errors import ConfigError
from lorafit.messages import _, listed


@dataclass(frozen=True)
class Preprocessing:
    """The settings that determine the sample of a row."""

    max_length: int
    date_string: str
    system_prompt: str | None = None
    train_on: TrainOn = "all"
    field_map: Mapping[str, str] | None = None
    context_field: str = ""
    keep_thoughts: bool = True

    def read(self, value: object) -> ReadRow:
        """Return the row as a conversation. Raises BadRow."""
        return recognize_format(value, self.field_map, self.context_field)

    def apply_template_to(self, conversation: Conversation, tokenizer: Tokenizer) -> TemplatedText:
        """Return the conversation as text of the chat template. Raises BadRow."""
        turns = conversation if self.keep_thoughts else without_thoughts(conversation)
        return apply_template(turns, tokenizer, self.date_string, self.system_prompt, self.train_on)

    def render(self, conversation: Conversation, tokenizer: Tokenizer) -> Rendered:
        """Return the conversation as a sample. Raises BadRow."""
        turns = conversation if self.keep_thoughts else without_thoughts(conversation)
        return render(turns, tokenizer, self.max_length, self.date_string, self.system_prompt, self.train_on)


def preprocessing_of(config: TrainConfig) -> Preprocessing:
    """Return the preprocessing that `config` sets. Raises ConfigError if `field_map` is invalid."""
    return Preprocessing(
        max_length=config.max_length,
        date_string=config.date_string,
        system_prompt=config.system_prompt,
        train_on=config.train_on,
        field_map=parse_field_map(config.field_map),
        context_field=config.context_field or "",
        keep_thoughts=config.thoughts == "keep",
    )


def parse_field_map(text: str | None) -> dict[str, str] | None:
    """Parse a text like `title=instruction,solution=output` as a dict; return None without text. Raises ConfigError."""
    if not text:
        return None
    pairs = [pair.partition("=") for pair in text.split(",")]
    made = {theirs.strip(): ours.strip() for theirs, _equals, ours in pairs}
    how = _("Write THEIRS=OURS, several separated by commas; OURS is one of: {known}.").format(known=listed(KEYS))
    if not all(theirs and ours for theirs, ours in made.items()):
        raise ConfigError(_("Invalid renaming of keys."), where="field_map", found=text, fix=how)
    for theirs, ours in made.items():
        if ours not in KEYS:
            near = [theirs] if theirs in KEYS else get_close_matches(ours, KEYS, n=1)
            turned = f"{ours}={theirs}" if theirs in KEYS else f"{theirs}={''.join(near)}"
            fix = _("Did you mean `{name}`?").format(name=turned) if near else how
            raise ConfigError(
                _("Unknown key `{key}`: no data format uses it.").format(key=ours),
                where="field_map",
                found=text,
                fix=fix,
            )
    if len(set(made.values())) < len(made):
        raise ConfigError(_("Two keys are renamed to the same name."), where="field_map", found=text, fix=how)
    return made
