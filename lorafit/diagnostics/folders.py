"""Checks of free disk space, write permission and the connection to the hub."""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from lorafit.diagnostics.finding import Finding
from lorafit.messages import _
from lorafit.models.hub import endpoint_of, why_unreachable
from lorafit.paths import cache_folder
from lorafit.units import GIB, bytes_text

HUB_SECONDS = 2.0
LITTLE_BYTES = 5 * GIB  # a 3B model needs more


def folder_findings(output_dir: Path, environ: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Yield the free disk space for runs, cache and downloaded models. Bad if runs cannot be written."""
    yield _folder(_("runs"), output_dir.absolute(), needed=True)
    yield _folder(_("cache"), cache_folder())
    yield _folder(_("models"), _hub_cache(environ))


def hub_finding() -> Finding:
    """Return whether the hub answers. At worst `poor`, because local models and the demo need no hub."""
    address = endpoint_of()
    reason = why_unreachable(address, HUB_SECONDS)
    if reason is None:
        return Finding("places", _("model hub"), _("{address} responds").format(address=address), "good")
    found = _("{address} cannot be reached: {reason}").format(address=address, reason=str(reason).splitlines()[0])
    fix = _(
        "Use cached files, local folders or `lorafit train --demo`, which need no hub, or a mirror: --hf_endpoint {mirror}"
    )
    return Finding("places", _("model hub"), found, "poor", fix.format(mirror="https://hf-mirror.com"))


def _folder(what: str, folder: Path, needed: bool = False) -> Finding:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    found = _("{folder} ({free} free)").format(folder=folder, free=bytes_text(free))
    if not os.access(there, os.W_OK):
        text = _("{folder} is not writable").format(folder=folder)
        fix = _("Choose a writable folder with {flag}.").format(flag="--output_dir") if needed else None
        return Finding("places", what, text, "bad" if needed else "poor", fix)
    if free < LITTLE_BYTES:
        return Finding("places", what, found, "poor", _("Free disk space: models and checkpoints need several GiB."))
    return Finding("places", what, found)


def _hub_cache(environ: Mapping[str, str]) -> Path:
    """Return the cache folder of huggingface_hub, by the same environment variables as in huggingface_hub."""
    cache = Path(environ.get("XDG_CACHE_HOME") or "~/.cache")
    home = Path(environ.get("HF_HOME") or cache / "huggingface")
    return Path(os.path.expanduser(environ.get("HF_HUB_CACHE") or home / "hub")).absolute()
