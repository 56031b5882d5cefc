"""The Modelfile: the Go template of a prompt format, end tokens, context length and system text.

A Modelfile has no escapes. Ollama ends a quoted text at three quotation marks, and leaves out characters that Go does not
print, such as the wide space U+3000. In a template, such texts are written as strings of Go.
"""

from typing import NamedTuple

from lorafit.data.conversation import Message
from lorafit.engines.tokenizer import ChatTokenizer
from lorafit.exporters.ollama.chat_format import ChatFormat, not_faithful, prompt_text
from lorafit.exporters.ollama.check import faithful_format
from lorafit.messages import _
from lorafit.run_folders.adapter import ChatSettings

QUOTES = '"""'


class Modelfile(NamedTuple):
    """The text of a Modelfile, and notes on what its template leaves out."""

    text: str
    notes: list[str]


def modelfile(tokenizer: ChatTokenizer, chat: ChatSettings, file: str, add_bos: bool, num_ctx: int) -> Modelfile:
    """Return the Modelfile for the GGUF file `file` beside it. Raises ExportError if its prompts would differ.

    `add_bos`: the GGUF file says that the bos token is added, so the template leaves it out. `num_ctx` is the context
    length in tokens. A system prompt of the training that a Modelfile cannot hold is written into the template.
    """
    chat_format, notes = faithful_format(tokenizer, chat.date_string)
    bos = tokenizer.inner.bos_token or "" if add_bos else ""
    if add_bos and not (bos and chat_format.start.startswith(bos) and chat_format.system.startswith(bos)):
        raise not_faithful(tokenizer, _("The bos token is added, but the chat template does not start with it."))
    system = _system_text(tokenizer, chat, chat_format) if chat.system_prompt else ""
    stops = [tokenizer.decode_with_special([token]) for token in sorted(tokenizer.stop_ids)]
    lines = [
        f"FROM ./{file}",
        f"TEMPLATE {QUOTES}{go_template(chat_format, bos, '' if _holds(system) else system)}{QUOTES}",
        f"SYSTEM {QUOTES}{system}{QUOTES}" if system and _holds(system) else "",
        *(f'PARAMETER stop "{stop}"' for stop in stops if stop.strip() and _holds(stop)),
        f"PARAMETER num_ctx {num_ctx}",
    ]
    return Modelfile("".join(f"{line}\n" for line in lines if line), notes)


def _system_text(tokenizer: ChatTokenizer, chat: ChatSettings, chat_format: ChatFormat) -> str:
    """Return the system prompt of the training, without white space at its ends where the chat template removes it."""
    given, question = chat.system_prompt or "", Message("user", "?")
    wanted = prompt_text([Message("system", given), question], tokenizer, chat.date_string)
    for text in (given, given.strip()):
        if text and chat_format.render([Message("system", text), question]) == wanted:
            return text
    raise not_faithful(tokenizer, _("The chat template changes the system prompt of the training."))


def go_template(chat_format: ChatFormat, bos: str = "", default_system: str = "") -> str:
    """Return the Go template of `chat_format` without the text `bos` at its start.

    It reads .System and .Messages. Without a system message, `default_system` is the system text. If the last message is
    the assistant's, the prompt ends with its content, so that the model continues it.
    """
    start, system = (_literal(text.removeprefix(bos)) for text in (chat_format.start, chat_format.system))
    text, head = "$.System", ""
    if default_system:
        text = "$system"
        head = f"{{{{ $system := {_quoted(default_system)} }}}}{{{{ if .System }}}}{{{{ $system = .System }}}}{{{{ end }}}}"
    placed = f"{{{{ {text} }}}}{_literal(chat_format.after_system)}"
    between = f"{{{{ if $last }}}}{_literal(chat_format.question)}{{{{ end }}}}"
    if chat_format.system_last:
        head += (
            '{{ $user := 0 }}{{ range $i, $m := .Messages }}{{ if eq .Role "user" }}{{ $user = $i }}{{ end }}{{ end }}'
        )
        head += start
        between += f"{{{{ if and {text} (eq $i $user) }}}}{placed}{{{{ end }}}}"
    else:
        head += f"{{{{ if {text} }}}}{system}{placed}{{{{ else }}}}{start}{{{{ end }}}}"
    return (
        f'{head}{{{{ $last := "" }}}}{{{{ range $i, $m := .Messages }}}}'
        f'{{{{ if eq .Role "user" }}}}{between}{{{{ .Content }}}}{{{{ $last = .Role }}}}'
        f'{{{{ else if eq .Role "assistant" }}}}{_literal(chat_format.answer)}{{{{ .Content }}}}{{{{ $last = .Role }}}}'
        f'{{{{ end }}}}{{{{ end }}}}{{{{ if ne $last "assistant" }}}}{_literal(chat_format.prompt)}{{{{ end }}}}'
    )


def _holds(text: str) -> bool:
    """Return whether Ollama reads `text` in quotation marks unchanged."""
    return QUOTES not in text and all(c in "\n\t" or c.isprintable() for c in text)


def _literal(text: str) -> str:
    """Return `text` in a template: as it is, or as a string of Go where Ollama or Go would change it."""
    plain = _holds(text) and "{{" not in text and not text.endswith("{")
    return text if plain else f"{{{{ {_quoted(text)} }}}}"


def _quoted(text: str) -> str:
    return f'"{"".join(map(_escaped, text))}"'


def _escaped(c: str) -> str:
    if c in '"\\':
        return f"\\{c}"
    if c == "\n":
        return "\\n"
    return c if c.isprintable() else f"\\U{ord(c):08x}"
