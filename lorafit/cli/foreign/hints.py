"""Hints for the names of other tools: a typed flag, or a key in a settings file, and what it is called here."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml
from pydantic import BaseModel

from lorafit.cli.foreign.flag_text import flags_text
from lorafit.cli.foreign.rules import Outcome
from lorafit.cli.foreign.tables import ANSWERING, TYPED
from lorafit.config import TrainConfig
from lorafit.messages import _, aside, labelled, translate


def fixes(kind: type[BaseModel], unknown: Sequence[str], given: Mapping[str, Any], help: str, dashes: str) -> str:
    """Return the fix for unknown names, a line each: another tool's name, or a similar name, or else once `help`.

    `given` has all typed flags with their values, or all keys of a file. `dashes` stands before the name of a flag.
    """
    lines = []
    for name in unknown:
        near = difflib.get_close_matches(name, kind.model_fields, n=1)
        guess = _("Did you mean `{name}`?").format(name=f"{dashes}{near[0]}") if near else help
        guess = labelled(f"`{dashes}{name}`", guess) if near and len(unknown) > 1 else guess
        lines.append(_hint(kind, name, given, dashes) or guess)
    return "\n".join(dict.fromkeys(lines))


def typed_values(flags: Iterable[tuple[str, str | None]]) -> dict[str, Any]:
    """Return typed flags as the values that YAML gives them; a flag without a value is true."""
    values = {}
    for name, text in flags:
        try:
            values[name] = True if text is None else yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError):  # e.g. 2026-02-31, an impossible date
            values[name] = text
    return values


def _hint(kind: type[BaseModel], name: str, given: Mapping[str, Any], dashes: str) -> str | None:
    """Return what the `name` of another tool is among the settings `kind`; None for a name that no tool has."""
    tables = TYPED if kind is TrainConfig else [("", ANSWERING)] if "lora_weights" in kind.model_fields else []
    for tool, rules in tables:
        if name in rules:
            outcome = rules[name](given.get(name), given)
            if not outcome.settings.keys() - kind.model_fields.keys():
                return _sentence(tool, f"`{dashes}{name}`", outcome, dashes)
    return None


def _sentence(tool: str, name: str, outcome: Outcome, dashes: str) -> str:
    if not outcome.settings:
        name, why = aside(name, tool) if tool else name, translate(outcome.note)
        text = (
            _("Remove {name}, which has no counterpart: {why}.") if outcome.refused else _("Leave out {name}: {why}.")
        )
        return text.format(name=name, why=why)
    ours = flags_text(outcome.settings) if dashes else ", ".join(map("{0[0]}: {0[1]}".format, outcome.settings.items()))
    if not tool:
        return _("Instead of {name}: `{ours}`").format(name=name, ours=ours)
    return _("{name} is a name of {tool}. Here: `{ours}`").format(name=name, tool=tool, ours=ours)
