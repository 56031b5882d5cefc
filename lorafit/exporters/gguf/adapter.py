"""`--to gguf --adapter_only`: the adapter as a GGUF file of its own, which llama.cpp applies to a file of the base model."""

import os
from dataclasses import dataclass
from pathlib import Path

from lorafit.errors import ExportError
from lorafit.exporters.base import ExportSource
from lorafit.exporters.certificate import Certificate, Form
from lorafit.exporters.facts import adapter_facts, base_facts
from lorafit.exporters.gguf import merged as whole
from lorafit.exporters.gguf.lora import write_lora_gguf
from lorafit.exporters.gguf.runtime import LlamaCpp
from lorafit.exporters.gguf.source import GgufSource
from lorafit.exporters.gguf.write import plan_gguf, write_gguf
from lorafit.exporters.measure import Gate, measured, reference
from lorafit.messages import _, listed
from lorafit.models.spec import read_config
from lorafit.progress import ProgressCallback
from lorafit.run_folders.adapter import lora_names

KIND = "f32"
BASE = "base.gguf"  # written to measure the adapter, and deleted


@dataclass
class GgufAdapter:
    """A checked export of an adapter alone."""

    source: ExportSource

    @property
    def needed_bytes(self) -> int:
        """The bytes of the adapter, and of the base in float32 while the adapter is measured."""
        own = sum(path.stat().st_size for path in self.source.adapter.iterdir() if path.is_file())
        if whole.why_not_measured(self.source):
            return own
        return own + plan_gguf(self._base(lambda _text: None), KIND).bytes + whole.OTHER_BYTES

    def write(self, folder: Path, say: ProgressCallback) -> Certificate:
        """Write the file. Raises ExportError if llama.cpp does not compute with it what the adapter does."""
        source = self.source
        path = folder / f"{whole.file_stem(source)}-lora.gguf"
        report = write_lora_gguf(source.adapter, read_config(source.base.folder), Path(source.base.name).name, path)
        written = {tensor.source for tensor in report.tensors}
        if lost := [module for module in source.modules if not written.issuperset(lora_names(module))]:
            fix = _("Export the merged model instead: `--to gguf`.")
            raise ExportError(_("Layers of the adapter are not in the file."), found=listed(lost[:3]), fix=fix)
        form = Form(path.name, KIND, report.bytes)
        notes = [_("The file has the adapter alone: llama.cpp needs a GGUF file of the base model beside it.")]
        if why := whole.why_not_measured(source):
            notes.append(why)
        else:
            form = self._measured(form, folder, say)
        if source.quantization != "none":
            text = _("The adapter was trained on the base model in {bits}. Load the base model in the same way.")
            notes.append(text.format(bits=source.quantization))
        return Certificate("gguf", base_facts(source), adapter_facts(source), source.quantization, [form],
                           stop_ids=source.tokenizer.end_ids, notes=notes)  # fmt: skip

    def _measured(self, form: Form, folder: Path, say: ProgressCallback) -> Form:
        wanted, base = reference(self.source, "fp32", None, say), folder / BASE
        write_gguf(self._base(say), base, KIND, say)

        length, threads = wanted.longest, os.cpu_count() or 1
        fix = _("Export the merged model instead: `--to gguf`.")
        gate = Gate(whole.MOST_RATIO[KIND], whole.TIE[KIND], fix)
        form = measured(form, wanted, whole.runtime_name(),
                        lambda: LlamaCpp(base, length, threads, folder / form.name), gate, say)  # fmt: skip
        base.unlink()
        return form

    def _base(self, say: ProgressCallback) -> GgufSource:
        return whole.gguf_source(self.source, {}, self.source.tokenizer, say)
