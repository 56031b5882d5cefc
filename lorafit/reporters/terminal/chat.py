"""Interactive chat at the terminal: streamed answers, commands and Ctrl-C. From a pipe, each line is a question."""

import json
import sys
from collections.abc import Callable
from contextlib import closing, suppress

from lorafit.errors import LorafitError
from lorafit.evaluation.chat import Chat
from lorafit.messages import _
from lorafit.paths import append_for_user, user_path
from lorafit.reporters.terminal.console import print_safe, show_pieces

with suppress(ImportError):
    import readline  # noqa: F401  (input() edits and remembers lines once it is imported; Windows has none)


class ExitChat(Exception):
    """Raised by /exit to end the chat."""


def talk(chat: Chat) -> None:
    """Read questions from stdin and stream the answers to stdout until the end of input, /exit, or Ctrl-C twice."""
    at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if at_terminal:
        print_safe(_("Type a question. /help lists the commands, /exit quits."))
    interrupted = False
    while True:
        try:
            line = input(_prompt(chat) if at_terminal else "").strip()
            interrupted = False
            if line:
                _turn(chat, line)
        except (EOFError, ExitChat):
            return
        except KeyboardInterrupt:
            if interrupted or not at_terminal:
                raise
            interrupted = True
            print_safe("\n" + _("Press Ctrl-C again to quit."))


def _prompt(chat: Chat) -> str:
    return "> " if chat.adapter_on or not chat.has_adapter else _("base> ")


def _turn(chat: Chat, line: str) -> None:
    if not line.startswith("/"):
        _answer(chat, line)
        return
    name, _space, rest = line.partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        print_safe(_("Unknown command {name}.").format(name=name))
        command = _help
    command(chat, rest.strip())


def stream(chat: Chat, question: str) -> None:
    """Print the answer to `question` as it is generated. Notes follow on stderr."""
    notes: list[str] = []
    chat.on_note = notes.append
    with closing(chat.reply(question)) as pieces:
        show_pieces(pieces)
    for note in notes:
        print_safe(f"⚠ {note}", stderr=True)


def _answer(chat: Chat, question: str) -> None:
    """Print the answer. An error (out of memory, a template) is printed too and does not end the chat."""
    try:
        stream(chat, question)
    except LorafitError as error:
        print_safe(f"\n{error}", stderr=True)


def _reset(chat: Chat, _rest: str) -> None:
    chat.reset()
    print_safe(_("Conversation cleared."))


def _base(chat: Chat, _rest: str) -> None:
    if not chat.has_adapter:
        print_safe(_("No adapter is loaded: the base model answers."))
        return
    chat.adapter_on = not chat.adapter_on
    print_safe(_("The adapter is on.") if chat.adapter_on else _("The adapter is off: the base model answers."))


def _save(chat: Chat, rest: str) -> None:
    """Append the conversation to a file as a row of training data."""
    if not rest:
        print_safe(_("Give a file name: /save chat.jsonl"))
        return
    turns = [{"role": turn.role, "content": turn.content} for turn in chat.transcript()]
    line = json.dumps({"messages": turns}, ensure_ascii=False) + "\n"
    try:
        append_for_user(user_path(rest), line.encode("utf-8", "replace"))
    except (OSError, LorafitError) as error:
        print_safe(_("Not saved: {error}").format(error=error.brief if isinstance(error, LorafitError) else error))
        return
    print_safe(_("Saved to {path}.").format(path=rest))


def _help(_chat: Chat, _rest: str) -> None:
    print_safe(_("/reset      clear the conversation"))
    print_safe(_("/base       switch the adapter off or on"))
    print_safe(_("/save FILE  append the conversation to FILE (JSON Lines)"))
    print_safe(_("/help       show this help"))
    print_safe(_("/exit       quit (or Ctrl-D)"))


def _exit(_chat: Chat, _rest: str) -> None:
    raise ExitChat


COMMANDS: dict[str, Callable[[Chat, str], None]] = {
    "/reset": _reset,
    "/base": _base,
    "/save": _save,
    "/help": _help,
    "/exit": _exit,
    "/quit": _exit,
}
