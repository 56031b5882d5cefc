"""The answers of an export, measured again beside its base model and adapter."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from lorafit import registry
from lorafit.errors import ExportError
from lorafit.exporters.base import ExportRequest
from lorafit.exporters.certificate import Form
from lorafit.exporters.measure import Gate, measured, reference
from lorafit.exporters.mlx_base import with_plain_base
from lorafit.exporters.source import source_of
from lorafit.messages import _
from lorafit.progress import ProgressCallback
from lorafit.run_folders.find_adapter import find_adapter
from lorafit.run_folders.origins import adapter_digest


def measure_again(folder: Path, facts: dict[str, Any], request: ExportRequest, say: ProgressCallback) -> list[Form]:
    """Return the forms of the export in `folder` with new figures; `facts` is its certificate, `request` names the run.

    Raises ExportError if a form answers otherwise than the run's adapter, or if it was not measured at the export.
    """
    adapter = find_adapter(request.run[0], Path(request.output_dir))
    if adapter_digest(adapter) != facts["adapter"]["sha256"]:
        raise ExportError(
            _("This is not the adapter of the export."),
            where=adapter,
            found=_("the export was made from: {name}").format(name=facts["adapter"]["run"]),
            fix=_("Name the run of the export. A mix cannot be measured again: export it again."),
        )
    forms = [form for form in facts.get("forms", []) if form["behaviour"]]
    if facts["target"] not in registry.EXPORT_RUNTIMES or not forms or any("-lora." in form["name"] for form in forms):
        raise ExportError(
            _("The answers of this export cannot be measured again."),
            where=folder,
            found=facts["target"],
            fix=_("Verify it without --run."),
        )
    return list(_measured(folder, facts["target"], forms, adapter, request, say))


def _measured(
    folder: Path, target: str, forms: list[dict[str, Any]], adapter: Path, request: ExportRequest, say: ProgressCallback
) -> Iterator[Form]:
    open_form = registry.load(registry.EXPORT_RUNTIMES[target])
    with with_plain_base(source_of(adapter, request, say), request, folder, say) as (source, _settled):
        wanted = reference(source, "fp32", None, say)
        for told in forms:
            form = Form(told["name"], told["dtype"], told["bytes"], strings=told["strings"])
            tie = told["greedy"]["tie"] if told["greedy"] else 0.0
            gate = Gate(told["most_ratio"], tie, _("Export again."))
            path = folder / form.name if form.name else folder
            opened = partial(open_form, source, path, wanted.longest)
            yield measured(form, wanted, told["runtime"], opened, gate, say)
