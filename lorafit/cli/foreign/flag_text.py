"""Settings as flags to paste, and values as text without secrets."""

import re
import shlex
from collections.abc import Mapping
from typing import Any

SECRET = re.compile(r"token$|key$|secret|password|webhook")
LONGEST = 60  # characters of a value that is shown


def flags_text(settings: Mapping[str, Any]) -> str:
    """Return `settings` as flags, such as `--lora_r 8 --trust_remote_code`."""
    return " ".join(_flag(name, value) for name, value in settings.items())


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no_{name}"
    return f"--{name} {shlex.quote(f'{value:g}' if isinstance(value, float) else str(value))}"


def shown(key: str, value: Any) -> str:
    """Return the value of a key as one short line; `***` for an access token."""
    if SECRET.search(key):
        return "***"
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else " ".join(str(value).split())
    return shortened(text, LONGEST)


def shortened(text: str, longest: int) -> str:
    """Return at most `longest` characters of `text`."""
    return text if len(text) <= longest else text[: longest - 1] + "…"
