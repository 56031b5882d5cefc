"""The target `ollama`: a GGUF file, and a Modelfile from which `ollama create` makes a model."""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from lorafit.errors import ConfigError
from lorafit.exporters.base import ExportRequest, ExportSource
from lorafit.exporters.certificate import Certificate
from lorafit.exporters.gguf.chat_check import begins_with_bos
from lorafit.exporters.gguf.export import WithFiles, kinds_of
from lorafit.exporters.gguf.export import check as check_gguf
from lorafit.exporters.gguf.merged import file_stem
from lorafit.exporters.ollama.modelfile import Modelfile, modelfile
from lorafit.exporters.ollama.read_back import require_modelfile
from lorafit.messages import _
from lorafit.progress import ProgressCallback

MODELFILE = "Modelfile"
CONTEXT = 8192  # tokens, or as many as the model knows: a longer context takes more memory


@dataclass
class OllamaExport(WithFiles):
    """A checked export: that of the GGUF file, and the Modelfile's text for a file of any name."""

    source: ExportSource

    def write(self, folder: Path, say: ProgressCallback) -> Certificate:
        """Write the files. Raises ExportError if they do not compute what the adapter does."""
        found = self.files.write(folder, say)
        written = _modelfile(self.source, found.forms[0].name)
        (folder / MODELFILE).write_text(written.text, "utf-8", newline="\n")
        tokenizer, chat = self.source.tokenizer, self.source.chat
        require_modelfile(folder / MODELFILE, tokenizer, chat, begins_with_bos(tokenizer, chat.date_string))
        name = shlex.quote(file_stem(self.source).lower())
        commands = [f"ollama create {name} -f {{folder}}/{MODELFILE}", f"ollama run {name}"]
        return replace(found, commands=commands, notes=[*found.notes, *written.notes])


def _modelfile(source: ExportSource, file: str) -> Modelfile:
    known = source.spec.positions
    context = CONTEXT if known is None else min(CONTEXT, known.limit)
    return modelfile(
        source.tokenizer, source.chat, file, begins_with_bos(source.tokenizer, source.chat.date_string), context
    )


def check(source: ExportSource, request: ExportRequest) -> OllamaExport:
    """Return the export. Raises ExportError for a chat template without a Go template that gives the same tokens."""
    if request.keep is None and len(kinds := kinds_of(request)) > 1:
        fix = _("Name one type, or export with --to gguf.")
        raise ConfigError(_("A model of Ollama has one type of weights."), found=", ".join(kinds), fix=fix)
    _modelfile(source, "model.gguf")
    return OllamaExport(check_gguf(source, request, "ollama"), source)
