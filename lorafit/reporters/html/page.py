"""HTML pages that any browser shows offline: check the path, render the template, write the file."""

from pathlib import Path

import jinja2

import lorafit
from lorafit.atomic import disk_errors, ensure_writable
from lorafit.errors import DiskError
from lorafit.messages import _, language


def check_page(path: Path) -> None:
    """Raise DiskError unless a page can be written to `path`. Call this before computing the page's content."""
    if path.is_dir():
        raise DiskError(
            _("The report cannot be written to a folder."), where=path, fix=_("Give a file name with --output.")
        )
    try:
        ensure_writable(path.parent)
    except DiskError as error:
        error.fix = _("Use --output to name a file in a folder you can write to.")
        raise


def render(template: str, facts: dict[str, object]) -> str:
    """Return the `template` beside this file filled in with `facts`; all values are escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = Path(__file__).with_name(template).read_text("utf-8")
    made = _("Made by lorafit {version}.").format(version=lorafit.__version__)
    spoken = "zh-CN" if language() == "zh" else "en"
    return environment.from_string(text).render({"language": spoken, "made": made, **facts})


def write_page(html: str, path: Path) -> None:
    """Write the page to `path` by renaming a complete .part file. Raise DiskError."""
    part = path.with_name(path.name + ".part")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(html, "utf-8")
        part.replace(path)
