"""Checks of one row for a missing answer and for invisible characters, and safe display of such text."""

import json
import re

from lorafit.data.readers.row import Broken

EXCERPT = 160  # characters
# Control characters except tab and line ends, invisible characters, characters that change the writing direction, and
# U+FFFD, which results from a wrong decoding. Joiners are not included: emoji and several scripts need them.
STRANGE = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2064\u2066-\u2069\ufeff\ufffd]"
)
QUESTIONS = ("instruction", "input", "question", "query", "prompt")
ANSWERS = ("output", "answer", "response", "completion")
TURNS = ("messages", "conversations")
ASSISTANT = ("assistant", "gpt")


def strange_characters(text: str) -> list[str]:
    """Return the control, invisible and replacement characters of `text`, each once, in the order of their codes."""
    return sorted(set(STRANGE.findall(text)))


def visible(text: str) -> str:
    """Return `text` in a form that is safe to print: invisible and control characters are replaced by their codes."""
    printable = text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates become "?"
    if "\r" in printable:  # alone, it moves the cursor to the start of the line
        printable = printable.replace("\r\n", "\n").replace("\r", "⟨U+000D⟩")
    return STRANGE.sub(lambda found: found[0] if found[0] == "\ufffd" else f"⟨U+{ord(found[0]):04X}⟩", printable)


def excerpt(value: object) -> str:
    """Return the beginning of a row's value in a form that is safe to print."""
    try:
        text = str(value) if isinstance(value, str | Broken) else json.dumps(value, ensure_ascii=False, default=str)
    except (RecursionError, TypeError, ValueError):  # nested too deeply, or keys that JSON does not have
        text = f"<{type(value).__name__}>"
    return visible(text if len(text) <= EXCERPT else f"{text[:EXCERPT]}…")


def lacks_answer(value: object) -> bool:
    """Return whether a row has a question without an answer.

    The answer is missing or blank, or no message of an assistant has text.
    """
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
