"""The check of a written Modelfile: its template, system text and stops give the prompts and ends of the training."""

import re
from pathlib import Path

from lorafit.data.conversation import Conversation
from lorafit.engines.tokenizer import ChatTokenizer
from lorafit.errors import ExportError
from lorafit.exporters.ollama.check import conversations
from lorafit.exporters.ollama.go_template import execute
from lorafit.messages import _
from lorafit.run_folders.adapter import ChatSettings

COMMAND = re.compile(
    r'^(FROM|TEMPLATE|SYSTEM|PARAMETER \w+) (?:"""(.*?)"""|"(.*?)"|([^\n]*))\n', re.MULTILINE | re.DOTALL
)
SHOWN = 60  # characters of a prompt in an error


def require_modelfile(path: Path, tokenizer: ChatTokenizer, chat: ChatSettings, add_bos: bool) -> None:
    """Raise ExportError unless Ollama would make the prompts of the training from the Modelfile `path`, and end answers.

    `add_bos`: the GGUF file says that the bos token is put before a prompt.
    """
    commands: dict[str, list[str]] = {}
    for name, *values in COMMAND.findall(path.read_text("utf-8")):
        commands.setdefault(name, []).append("".join(values))
    if not (path.parent / commands.get("FROM", [""])[0]).is_file():
        raise _wrong("FROM", commands.get("FROM"))
    wanted = {tokenizer.decode_with_special([token]) for token in tokenizer.end_ids}
    stops = set(commands.get("PARAMETER stop", ()))
    if missing := sorted(stop for stop in wanted - stops if stop.strip() and '"' not in stop and stop.isprintable()):
        raise _wrong("PARAMETER stop", missing)
    if extra := sorted(stops - wanted):
        raise _wrong("PARAMETER stop", extra)
    bos = str(tokenizer.inner.bos_token) if add_bos else ""
    template, system = (commands.get(name, [""])[0] for name in ("TEMPLATE", "SYSTEM"))
    for turns in conversations():
        try:
            prompt = bos + execute(template, _data(turns, system))
        except (ValueError, LookupError, TypeError) as error:
            raise _wrong("TEMPLATE", error) from None
        if tokenizer.encode_with_offsets(prompt)[0] != tokenizer.prompt_ids(
            turns, chat.date_string, chat.system_prompt
        ):
            raise _wrong("TEMPLATE", repr(prompt[:SHOWN]))


def _data(turns: Conversation, system: str) -> dict[str, object]:
    """Return what Ollama gives to a template for `turns`: the text of system messages, and the other messages."""
    told = [turn.content for turn in turns if turn.role == "system"]
    messages = [{"Role": turn.role, "Content": turn.content} for turn in turns if turn.role != "system"]
    return {"System": "\n\n".join(told) or system, "Messages": messages}


def _wrong(command: str, found: object) -> ExportError:
    return ExportError(
        _("The Modelfile does not do what the training did: {command}.").format(command=command),
        found=found,
        fix=_("Please report it. `--to gguf` exports the file without a Modelfile."),
    )
