"""The check of an export's folder by its certificate: digests of all files, and the token IDs of its chat template.

It needs neither base model nor adapter, so it says nothing of how the model answers.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafit.engines.tokenizer import load_tokenizer
from lorafit.errors import ExportError
from lorafit.exporters.certificate import file_digests, read_certificate
from lorafit.exporters.chat_files import template_facts
from lorafit.messages import _, listed
from lorafit.models.spec import TOKENIZER_FILES
from lorafit.progress import ProgressCallback

SHOWN = 5


@dataclass(frozen=True)
class Verified:
    """An export that is as its certificate says. `texts`: how many texts of its template were compared; 0: none."""

    folder: Path
    files: int
    texts: int
    certificate: dict[str, Any]


def verify_export(folder: Path, trust_remote_code: bool, say: ProgressCallback) -> Verified:
    """Return the result for the export in `folder`. Raises ExportError if a file differs from the certificate."""
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
        tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
        if template_facts(tokenizer, told["date"])["token_ids"] != told["token_ids"]:
            fix = _("Install the versions in export.json: {names}.").format(
                names=listed(f"{name} {number}" for name, number in facts["versions"].items())
            )
            raise ExportError(
                _("The chat template gives other tokens here than when it was exported."), where=folder, fix=fix
            )
    return Verified(folder, len(wanted), int(told.get("texts", 0)), facts)


def _change(name: str, wanted: dict[str, Any], found: dict[str, Any]) -> str:
    if name not in found:
        return _("{file} is missing").format(file=name)
    if name not in wanted:
        return _("{file} was added").format(file=name)
    return _("{file} was changed: its SHA-256 checksum differs").format(file=name)
