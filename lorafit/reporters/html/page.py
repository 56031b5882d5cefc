"""HTML pages that any browser shows offline: the template and the values that all pages share."""

from pathlib import Path

import jinja2

import lorafit
from lorafit.messages import _, language


def render(template: str, facts: dict[str, object]) -> str:
    """Return the `template` beside this file filled in with `facts`; all values are escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = Path(__file__).with_name(template).read_text("utf-8")
    made = _("Made by lorafit {version}.").format(version=lorafit.__version__)
    spoken = "zh-CN" if language() == "zh" else "en"
    return environment.from_string(text).render({"language": spoken, "made": made, **facts})
