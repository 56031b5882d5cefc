"""The target `lmstudio`: a GGUF file in a folder AUTHOR/MODEL, as LM Studio looks for models."""

from dataclasses import dataclass, replace
from pathlib import Path

from lorafit.exporters.base import ExportRequest, ExportSource
from lorafit.exporters.certificate import Certificate
from lorafit.exporters.gguf.export import WithFiles
from lorafit.exporters.gguf.export import check as check_gguf
from lorafit.messages import _
from lorafit.progress import ProgressCallback


@dataclass
class LMStudioExport(WithFiles):
    """A checked export for LM Studio: that of GGUF files, and what to do with them."""

    def write(self, folder: Path, say: ProgressCallback) -> Certificate:
        """Write the files. Raises ExportError if they do not compute what the adapter does."""
        found = self.files.write(folder, say)
        commands = [f"lms import {{folder}}/{form.name}" for form in found.forms]
        note = _(
            "LM Studio shows the model if this folder lies in its folder of models, as AUTHOR/MODEL; else import the file."
        )
        return replace(found, commands=commands, notes=[*found.notes, note])


def check(source: ExportSource, request: ExportRequest) -> LMStudioExport:
    """Return the export."""
    return LMStudioExport(check_gguf(source, request, "lmstudio"))
