"""How does a template become a page on the disk that any browser shows, without a network?"""

from pathlib import Path

import jinja2

import lorafit
from lorafit.atomic import disk_errors, ensure_writable
from lorafit.errors import DiskError
from lorafit.messages import _, language


def check_page(path: Path) -> None:
    """Raise DiskError unless a page can be written to `path`; before what is told there is computed."""
    if path.is_dir():
        raise DiskError(
            _("The report goes to a file; this is a folder."), where=path, fix=_("Name a file with --output.")
        )
    try:
        ensure_writable(path.parent)
    except DiskError as error:
        error.fix = _("Name a file in a folder that you may write with --output.")
        raise


def render(template: str, facts: dict[str, object]) -> str:
    """The `template` beside this file, filled in with `facts`; everything in them is escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = Path(__file__).with_name(template).read_text("utf-8")
    made = _("Made by lorafit {version}.").format(version=lorafit.__version__)
    spoken = "zh-CN" if language() == "zh" else "en"
    return environment.from_string(text).render({"language": spoken, "made": made, **facts})


def write_page(html: str, path: Path) -> None:
    """Write the page, whole or not at all. Raises DiskError."""
    part = path.with_name(path.name + ".part")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(html, "utf-8")
        part.replace(path)
