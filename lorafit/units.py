"""Bytes, seconds and counts as text for the user, and the fixed date of chat templates. The code has 1024**3 only here."""

import time

from lorafit.messages import _

KIB, MIB, GIB = 1024, 1024**2, 1024**3
TEMPLATE_DATE = "26 Jul 2024"  # the date that chat templates write, unless --date_string says otherwise


def bytes_text(size: int | None) -> str:
    """Return `size` in bytes as "1.4 GiB" or "312 MiB"; a question mark for None, because unknown is never 0."""
    if size is None:
        return "?"
    if size >= GIB:
        return f"{size / GIB:.1f} GiB"
    return f"{size / MIB:.0f} MiB" if size >= MIB else f"{size / KIB:.0f} KiB"


def seconds_text(seconds: float | None) -> str:
    """Return `seconds` as "45 s", "3 min 20 s", "2 h 5 min" or "1 d 3 h", in the user's language.

    None gives a question mark.
    """
    if seconds is None:
        return "?"
    whole = round(seconds)
    if seconds < 9.95:
        return _("{seconds:.1f} s").format(seconds=seconds)
    if whole < 60:
        return _("{seconds} s").format(seconds=whole)
    if whole < 3600:
        return _("{minutes} min {seconds} s").format(minutes=whole // 60, seconds=whole % 60)
    if whole < 86400:
        return _("{hours} h {minutes} min").format(hours=whole // 3600, minutes=whole % 3600 // 60)
    return _("{days} d {hours} h").format(days=whole // 86400, hours=whole % 86400 // 3600)


def date_text(when: float, form: str) -> str:
    """Return the Unix time `when` in the form of time.strftime; a question mark for a time that no calendar has."""
    try:
        return time.strftime(form, time.localtime(when))
    except (OverflowError, ValueError, OSError):
        return "?"


def range_text(low: float, high: float) -> str:
    """Return two durations in seconds as a range: "3 min 14 s to 4 min 32 s"."""
    return _("{low} to {high}").format(low=seconds_text(low), high=seconds_text(high))


def kind_text(value: object) -> str:
    """Return the kind of a JSON or YAML value as text for the user: "text", "a list", "null"."""
    kinds = {
        type(None): "null",
        bool: _("true or false"),
        int: _("a whole number"),
        float: _("a number"),
        str: _("text"),
        list: _("a list"),
        dict: _("an object"),
    }
    return kinds.get(type(value), type(value).__name__)


def count_text(count: int) -> str:
    """Return `count` with thousands separators: "21,476"."""
    return f"{count:,}"


ALL_LINEAR = "all-linear"  # PEFT's word for all linear layers


def canonical_targets(targets: str) -> str:
    """Return `lora_targets` without spaces, and with `all-linear` for `all`, so that equal selections compare equal."""
    words = [word.strip() for word in targets.split(",")]
    return ",".join(ALL_LINEAR if word == "all" else word for word in words if word)
