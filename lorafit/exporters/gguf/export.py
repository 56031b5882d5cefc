"""The target `gguf`: whole models as GGUF files, one for each type of weights, measured in llama.cpp."""

import os
import tempfile
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import prod
from pathlib import Path

from lorafit.engines.tokenizer import load_tokenizer
from lorafit.errors import ConfigError
from lorafit.exporters.adapted import adapted_names, dequantized_note
from lorafit.exporters.base import ExportJob, ExportRequest, ExportSource
from lorafit.exporters.certificate import Certificate, Form
from lorafit.exporters.chat_files import template_facts, write_tokenizer
from lorafit.exporters.facts import adapter_facts, base_facts
from lorafit.exporters.gguf.adapter import GgufAdapter
from lorafit.exporters.gguf.architectures import find_architecture, settings_of
from lorafit.exporters.gguf.chat_check import require_chat_in
from lorafit.exporters.gguf.merged import (
    MOST_RATIO,
    OF_FEW_BITS,
    OTHER_BYTES,
    TIE,
    WIDE_TIE,
    file_stem,
    gguf_source,
    runtime_name,
    why_not_measured,
)
from lorafit.exporters.gguf.quantize import BASE_TYPES, FILE_TYPES, K_TYPES, PACKAGE
from lorafit.exporters.gguf.runtime import LlamaCpp
from lorafit.exporters.gguf.settings_check import require_settings_in
from lorafit.exporters.gguf.source import GgufSource
from lorafit.exporters.gguf.write import plan_gguf, write_gguf
from lorafit.exporters.keep import require_known_gain, smallest
from lorafit.exporters.measure import Gate, Reference, measured, reference
from lorafit.exporters.products import require_same_layers
from lorafit.exporters.survival import require_survival
from lorafit.messages import _, listed
from lorafit.models.spec import read_config
from lorafit.progress import ProgressCallback

DEFAULT = "q8_0"


@dataclass
class GgufExport:
    """A checked export. `sizes` are the bytes of the files by type; with `keep`, one of the types is chosen."""

    source: ExportSource
    target: str
    names: dict[str, str]
    sizes: dict[str, int]
    keep: float | None

    @property
    def needed_bytes(self) -> int:
        """The bytes of all files; with `keep`, one file is there at a time."""
        sizes = [size + OTHER_BYTES for size in self.sizes.values()]
        return max(sizes) if self.keep is not None else sum(sizes)

    def write(self, folder: Path, say: ProgressCallback) -> Certificate:
        """Write the files and measure them. Raises ExportError if they do not compute what the adapter does."""
        source = self.source
        why = why_not_measured(source)
        wanted = None if why else reference(source, "fp32", None, say)
        if self.keep is not None:
            require_known_gain(wanted or why or "")
        with tempfile.TemporaryDirectory(prefix="lorafit-") as scratch:
            write_tokenizer(source, Path(scratch))
            written = load_tokenizer(Path(scratch), trust_remote_code=source.trust_remote_code)
            job = _Files(source, self.names, gguf_source(source, self.names, written, say), folder, wanted, say)
            if self.keep is not None:
                kinds = sorted(self.sizes, key=lambda kind: self.sizes[kind])
                forms = [smallest(kinds, self.keep, job.form, lambda kind: job.path(kind).unlink(missing_ok=True))]
            else:
                forms = [job.form(kind) for kind in self.sizes]
        is_read = all(form.strings for form in forms)  # by llama.cpp
        template = template_facts(source.tokenizer, source.chat.date_string) if is_read else {}
        notes = [*dequantized_note(source), *([why] if why else []), *job.notes]
        return Certificate(self.target, base_facts(source), adapter_facts(source), source.quantization, forms, template,
                           source.tokenizer.end_ids, notes)  # fmt: skip


@dataclass
class _Files:
    """The files of one model in `folder`. `wanted` is how base and adapter answer; None: files are not measured."""

    source: ExportSource
    names: dict[str, str]
    model: GgufSource
    folder: Path
    wanted: Reference | None
    say: ProgressCallback

    def __post_init__(self) -> None:
        self.notes: list[str] = []

    def path(self, kind: str) -> Path:
        """Return the file of a type."""
        return self.folder / f"{file_stem(self.source)}-{kind}.gguf"

    def form(self, kind: str) -> Form:
        """Write and measure the file of a type. Raises ExportError, ModelError, ConfigError and DiskError."""
        source = self.source
        report = write_gguf(self.model, self.path(kind), kind, self.say)
        self.notes += [note for note in report.notes if note not in self.notes]
        types = {tensor.source: tensor.type for tensor in report.tensors}
        numbers = sum(prod(tensor.shape) for tensor in report.tensors)
        require_survival(report.survival, types, _fix())
        form = Form(self.path(kind).name, kind, report.bytes, report.survival)
        if find_spec(PACKAGE) is None:
            return form
        length = max(self.wanted.longest if self.wanted else 0, 64)
        with LlamaCpp(self.path(kind), length, os.cpu_count() or 1) as model:
            require_settings_in(model, read_config(source.base.folder), numbers, source.base.name)
            form = replace(form, strings=require_chat_in(model, source, self.model.chat_template or ""))
        if self.wanted is None:
            return form
        require_same_layers(self.model.layers, self.wanted.layers, self.names, source.quantization)
        threads = os.cpu_count() or 1
        gate = Gate(MOST_RATIO.get(kind, OF_FEW_BITS), TIE.get(kind, WIDE_TIE), _fix())
        return measured(
            form, self.wanted, runtime_name(), lambda: LlamaCpp(self.path(kind), length, threads), gate, self.say
        )


@dataclass
class WithFiles:
    """An export of GGUF files with more beside them; `files` writes the GGUF files."""

    files: ExportJob

    @property
    def needed_bytes(self) -> int:
        """The bytes of the GGUF files, which leave room for the others."""
        return self.files.needed_bytes


def _fix() -> str:
    return _("Choose a type with more bits, for example `--quantize q8_0` or `--quantize f16`.")


def kinds_of(request: ExportRequest) -> list[str]:
    """Return the types that the request asks for; with --keep, all that can be written here. Raises ConfigError."""
    if request.keep is not None:
        if request.quantize is not None:
            fix = _("Remove one of them.")
            raise ConfigError(
                _("--keep chooses the type of the weights itself."), found=f"--quantize {request.quantize}", fix=fix
            )
        has_k = find_spec(PACKAGE) is not None
        return [kind for kind in FILE_TYPES if has_k or BASE_TYPES[kind] not in K_TYPES]
    kinds = [kind.strip().lower() for kind in (request.quantize or DEFAULT).split(",")]
    if not any(kinds):
        fix = _("Use one of: {names}").format(names=listed(FILE_TYPES))
        raise ConfigError(_("Unknown type of a GGUF file."), found=request.quantize, fix=fix)
    return list(dict.fromkeys(kind for kind in kinds if kind))


def check(source: ExportSource, request: ExportRequest, target: str = "gguf") -> ExportJob:
    """Return the export. Raises ModelError for a model that llama.cpp does not know, ConfigError for an unknown type."""
    if request.adapter_only:
        if request.quantize is not None or request.keep is not None:
            given = "--keep" if request.quantize is None else "--quantize"
            fix = _("Remove {flag}, or remove --adapter_only.").format(flag=given)
            raise ConfigError(_("An adapter alone is written in float32."), found=f"--adapter_only {given}", fix=fix)
        find_architecture(settings_of(read_config(source.base.folder)), source.base.name)
        return GgufAdapter(source)
    names = adapted_names(source)
    model = gguf_source(source, names, source.tokenizer, lambda _text: None)
    sizes = {kind: plan_gguf(model, kind).bytes for kind in kinds_of(request)}
    return GgufExport(source, target, names, sizes, request.keep)
