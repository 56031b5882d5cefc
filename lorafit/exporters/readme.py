"""README.md of an export: what it is, how to use it, and its certificate, in English and in Chinese."""

from collections.abc import Iterator

from lorafit import __version__
from lorafit.exporters.certificate import Certificate
from lorafit.exporters.words import lines, title
from lorafit.messages import LANGUAGES, _, recipe_of, retranslate, speaking

LIBRARIES = {"merged": "transformers", "mlx": "mlx", "peft": "peft", "vllm": "peft"}  # others: gguf


def readme(certificate: Certificate) -> str:
    """Return the text, with the YAML front matter that model hubs read."""
    parts = [f"""---
base_model: {certificate.base["name"]}
library_name: {LIBRARIES.get(certificate.target, "gguf")}
tags: [lorafit]
---
# {certificate.adapter["run"]}
"""]  # fmt: skip
    for language in LANGUAGES:
        with speaking(language):
            parts += _section(certificate)
    return "\n".join(parts) + "\n"


def _section(certificate: Certificate) -> Iterator[str]:
    text = _("The base model `{base}` with a LoRA adapter, exported by lorafit {version} for: {target}.")
    yield text.format(base=certificate.base["name"], version=__version__, target=certificate.target) + "\n"
    if certificate.commands:
        yield _("Use it:") + "\n"
        yield from (f"    {command.replace('{folder}', '.')}" for command in certificate.commands)
        yield ""
    for form in certificate.forms:
        yield f"**{title(form)}**\n"
        yield from (f"- {line}" for line in lines(form))
        yield ""
    if certificate.notes:
        yield from (f"- {retranslate(recipe_of(note))}" for note in certificate.notes)
        yield ""
    yield _("export.json has all figures and digests. `lorafit verify .` checks that the files are unchanged.") + "\n"
