"""The check of an export's folder by its certificate: digests of all files, and the token IDs of its chat template.

It needs neither base model nor adapter. With both, it also measures again how the model answers.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafit.engines.tokenizer import load_tokenizer
from lorafit.errors import ExportError
from lorafit.exporters.again import measure_again
from lorafit.exporters.base import ExportRequest
from lorafit.exporters.certificate import Form, file_digests, read_certificate
from lorafit.exporters.chat_files import template_facts
from lorafit.messages import _, listed
from lorafit.models.spec import TOKENIZER_FILES
from lorafit.progress import ProgressCallback

SHOWN = 5


@dataclass(frozen=True)
class Verified:
    """An export that is as its certificate says.

    `texts`: how many texts of its template were compared; 0: none. `forms` were measured again.
    """

    folder: Path
    files: int
    texts: int
    forms: list[Form]


def verify_export(folder: Path, request: ExportRequest, say: ProgressCallback) -> Verified:
    """Return the result for the export in `folder`; if `request` names its run, with its answers, measured again.

    Raises ExportError if a file differs from the certificate, or if the export answers otherwise than the run's adapter.
    """
    facts = read_certificate(folder)
    say(_("Checking {name}").format(name=folder))
    wanted, found = facts["files"], file_digests(folder)
    changed = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
    if changed:
        names = listed(_change(name, wanted, found) for name in changed[:SHOWN])
        fix = _("Export again, or copy the folder again from where it was complete.")
        raise ExportError(_("The export is not as it was written."), where=folder, found=names, fix=fix)
    has_tokenizer = any((folder / name).is_file() for name in TOKENIZER_FILES)
    told = (facts.get("template") or {}) if has_tokenizer else {}
    if told:
        tokenizer = load_tokenizer(folder, trust_remote_code=request.trust_remote_code)
        if template_facts(tokenizer, told["date"])["token_ids"] != told["token_ids"]:
            fix = _("Install the versions in export.json: {names}.").format(
                names=listed(f"{name} {number}" for name, number in facts["versions"].items())
            )
            raise ExportError(
                _("The chat template gives other tokens here than when it was exported."), where=folder, fix=fix
            )
    forms = measure_again(folder, facts, request, say) if request.run else []
    return Verified(folder, len(wanted), int(told.get("texts", 0)), forms)


def _change(name: str, wanted: dict[str, Any], found: dict[str, Any]) -> str:
    if name not in found:
        return _("{file} is missing").format(file=name)
    if name not in wanted:
        return _("{file} was added").format(file=name)
    return _("{file} was changed: its SHA-256 checksum differs").format(file=name)
