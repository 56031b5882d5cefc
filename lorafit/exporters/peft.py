"""The target `peft`: the adapter itself, as PEFT's AutoPeftModelForCausalLM reads it, with tokenizer and README.md."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lorafit.engines.exported_template import exported_template
from lorafit.engines.tokenizer import load_tokenizer
from lorafit.errors import ExportError
from lorafit.exporters.base import ExportRequest, ExportSource
from lorafit.exporters.certificate import Certificate
from lorafit.exporters.chat_files import require_template, template_facts
from lorafit.exporters.facts import adapter_facts, base_facts
from lorafit.messages import _
from lorafit.progress import ProgressCallback
from lorafit.run_folders.adapter import (
    CHAT,
    WEIGHTS,
    read_adapter,
    read_plain_config,
    write_adapter,
    write_chat_settings,
)
from lorafit.run_folders.foreign_adapter import MLX_WEIGHTS
from lorafit.run_folders.peft_form import CONFIG, change_settings
from lorafit.training.peft_check import CannotCheck, ask_peft, is_complete, verdict

COPIED = (CONFIG, WEIGHTS, CHAT, "README.md")


@dataclass
class PeftExport:
    """A checked export of an adapter."""

    source: ExportSource

    @property
    def needed_bytes(self) -> int:
        """The bytes of the adapter's folder."""
        return sum(path.stat().st_size for path in self.source.adapter.iterdir() if path.is_file())

    def write(self, folder: Path, say: ProgressCallback) -> Certificate:
        """Write the adapter. Raises ExportError if the installed peft does not load all of it."""
        source = self.source
        if (source.adapter / MLX_WEIGHTS).is_file():
            write_adapter(folder, read_plain_config(source.adapter), dict(read_adapter(source.adapter)[1]))
        for name in COPIED:
            if (source.adapter / name).is_file() and not (folder / name).exists():
                shutil.copyfile(source.adapter / name, folder / name)
        if (folder / CHAT).is_file():  # the exported template itself leaves out what the training did not have
            write_chat_settings(folder, replace(source.chat, untrained_end=""))
        source.tokenizer.save(folder, exported_template(source.tokenizer))
        say(_("Checking that `peft` loads the adapter"))
        notes = [peft_answer(source, folder)]
        if source.quantization != "none":
            text = _("The adapter was trained on the base model in {bits}. Load the base model in the same way.")
            notes.append(text.format(bits=source.quantization))
        written = load_tokenizer(folder, trust_remote_code=source.trust_remote_code)
        require_template(source, written)
        _require_same_adapter(source.adapter, folder)
        return Certificate("peft", base_facts(source), adapter_facts(source), quantization=source.quantization,
                           template=template_facts(written, source.chat.date_string), notes=notes,
                           stop_ids=source.tokenizer.end_ids)  # fmt: skip


def peft_answer(source: ExportSource, folder: Path) -> str:
    """Return in words that the installed peft loads the adapter in `folder`, and change its settings if peft needs others.

    Raises ExportError if peft does not load all of it.
    """
    try:
        report = ask_peft(folder, source.base.folder, source.trust_remote_code, lambda: None)
    except CannotCheck as error:
        return _("Not checked whether `peft` loads this adapter: {why}.").format(why=error)
    if not is_complete(report):
        fix = _("Merge it into the base model instead: `--to merged`.")
        raise ExportError(verdict(report), where=source.adapter, fix=fix)
    if report["changes"]:
        change_settings(folder, report["changes"])
    return verdict(report)


def _require_same_adapter(adapter: Path, written: Path) -> None:
    """Raise ExportError unless both folders have the same weights, ranks and scales."""
    tensors, others = (read_adapter(folder)[1] for folder in (adapter, written))
    same = tensors.keys() == others.keys() and all(np.array_equal(tensors[name], others[name]) for name in tensors)
    scales = [read_plain_config(folder) for folder in (adapter, written)]
    if not same or any(scales[0].scale_of(module) != scales[1].scale_of(module) for module in scales[0].target_modules):
        raise ExportError(
            _("The adapter of the export is not that of the run."), where=adapter, fix=_("Please report it.")
        )


def check(source: ExportSource, request: ExportRequest) -> PeftExport:
    """Return the export."""
    return PeftExport(source)
