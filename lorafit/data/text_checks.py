"""What is odd about one row? A missing answer, characters that nobody sees; and how is such a text shown safely?"""

import json
import re

from lorafit.data.readers.row import Broken

EXCERPT = 160  # characters
# Control characters but tab and line ends, what is invisible or turns the direction of writing, and U+FFFD, left by a
# wrong decoding. Joiners stay out: emoji and several scripts need them.
STRANGE = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2064\u2066-\u2069\ufeff\ufffd]"
)
QUESTIONS = ("instruction", "input", "question", "query", "prompt")
ANSWERS = ("output", "answer", "response", "completion")
TURNS = ("messages", "conversations")
ASSISTANT = ("assistant", "gpt")


def strange_characters(text: str) -> list[str]:
    """The characters of `text` that a reader does not see or did not mean, each once, in order of their codes."""
    return sorted(set(STRANGE.findall(text)))


def visible(text: str) -> str:
    """`text` that can be printed anywhere: what is invisible or steers a terminal stands there by its code."""
    printable = text.encode("utf-8", "replace").decode("utf-8")  # half surrogate pairs become "?"
    return STRANGE.sub(lambda found: found[0] if found[0] == "\ufffd" else f"⟨U+{ord(found[0]):04X}⟩", printable)


def excerpt(value: object) -> str:
    """The beginning of a row as it stands in its file, visible."""
    try:
        text = str(value) if isinstance(value, str | Broken) else json.dumps(value, ensure_ascii=False, default=str)
    except (RecursionError, TypeError, ValueError):  # nested too deep, or keys that JSON has not
        text = f"<{type(value).__name__}>"
    return visible(text if len(text) <= EXCERPT else f"{text[:EXCERPT]}…")


def lacks_answer(value: object) -> bool:
    """Whether a row asks something and nothing answers: its answer is missing or blank, or no assistant says a word."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, dict):
        return False
    turns = [turn for key in TURNS if isinstance(value.get(key), list) for turn in value[key] if isinstance(turn, dict)]
    said = [
        turn.get("content") or turn.get("value")
        for turn in turns
        if (turn.get("role") or turn.get("from")) in ASSISTANT
    ]
    answers = [value.get(key) for key in ANSWERS] + said
    asks = bool(turns) or any(value.get(key) for key in QUESTIONS)
    return asks and not any(answer if not isinstance(answer, str) else answer.strip() for answer in answers)
