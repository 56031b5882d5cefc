"""Terminal output of `lorafit export` and `lorafit verify`: the folder, and what was measured."""

import shlex

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorafit.exporters.certificate import Form
from lorafit.exporters.export import Exported
from lorafit.exporters.verify import Verified
from lorafit.exporters.words import lines, title
from lorafit.messages import _
from lorafit.units import bytes_text, seconds_text


def show_export(exported: Exported, console: Console) -> None:
    """Print the folder of an export and the figures of its certificate."""
    text = _("✓ export: {path} ({size}), in {time}")
    size, took = bytes_text(exported.bytes), seconds_text(exported.seconds)
    _say(console, text.format(path=exported.folder, size=size, time=took))
    certificate = exported.certificate
    if len(certificate.forms) > 1:
        _show_table(certificate.forms, console)
    for form in certificate.forms if len(certificate.forms) == 1 else ():
        if form.name:
            _say(console, title(form))
        for line in lines(form):
            _say(console, f"✓ {line}")
    if certificate.template:
        _say(console, "✓ " + _("chat template and end tokens: as in the training"))
    for note in certificate.notes:
        _say(console, note)
    folder = shlex.quote(str(exported.folder))
    for command in certificate.commands:
        _say(console, _("Use it: {command}").format(command=command.replace("{folder}", folder)))
    _say(console, _("Check it again, anywhere: {command}").format(command=f"lorafit verify {folder}"))


def _show_table(forms: list[Form], console: Console) -> None:
    """Print the figures of several forms; the lines of each are in README.md."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    columns = (_("type"), _("size"), _("kept"), _("interval (95%)"), "KL", "R", _("same best token"))
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left")
    for form in forms:
        row = [form.dtype, bytes_text(form.bytes)]
        for found in form.behaviour[:1]:
            share, low, high = found.losses.kept or (None, None, None)
            row += ["?" if share is None else f"{share:.1%}", "?" if low is None else f"{low:.1%} - {high:.1%}"]
            row += [f"{found.kl_export:.2g}", "?" if found.ratio is None else f"{found.ratio:.2g}", f"{found.top1:.1%}"]
        table.add_row(*row)
    console.print(table)
    if any(form.behaviour for form in forms):
        _say(console, _("kept: of what was learned. KL: nats from base and adapter; R: KL over that of the base."))


def show_verified(found: Verified, console: Console) -> None:
    """Print the result of a check."""
    _say(console, _("✓ {path}: {files} files are as they were written").format(path=found.folder, files=found.files))
    if found.texts:
        text = _("✓ chat template: the same tokens as in the training, on {count} texts")
        _say(console, text.format(count=found.texts))
    for form in found.forms:
        _say(console, title(form))
        for line in lines(form):
            _say(console, f"✓ {line}")
    if not found.forms:
        text = _("Not checked here: how the model answers. With the run, `--run RUN` measures it again.")
        _say(console, text)


def _say(console: Console, text: str) -> None:
    console.print(Text(text), soft_wrap=True)
