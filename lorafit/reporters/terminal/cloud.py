"""Terminal output of `lorafit cloud`: the files, the platform's machines with plan, time and price, and next steps."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorafit.messages import _, aside, clauses, listed, translate
from lorafit.reporters.terminal.columns import show_line
from lorafit.transfer.cloud.base import Quote
from lorafit.transfer.cloud.send import CloudFiles
from lorafit.units import range_text, seconds_text


def show_cloud_files(sent: CloudFiles, console: Console) -> None:
    """Print the files, the quotes and the next steps."""
    head = _("✓ {place}: files in {folder}: {files}")
    text = head.format(place=sent.title, folder=sent.folder, files=listed(sent.files))
    show_line(Text(text), console)
    if sent.quotes:
        console.print()
        if reason := _common_reason(sent.quotes):
            text = _("✗ No plan for {machines}: {reason}")
            names = listed(offer.machine for offer in sent.quotes)
            show_line(Text(text.format(machines=names, reason=reason)), console)
        else:
            console.print(_table(sent.quotes))
        if note := _prices_note(sent.quotes):
            console.print(Text(note, "dim"))
    console.print()
    for number, step in enumerate(sent.next_steps, 1):
        console.print(Text(f"{number}. {step}"), soft_wrap=True)
    console.print(
        Text(_("When training is finished: {command}").format(command="lorafit fetch result.zip")), soft_wrap=True
    )


def _common_reason(offers: list[Quote]) -> str | None:
    """Return the reason why no machine has a plan, if it is the same for all."""
    reasons = {None if offer.fits else offer.details for offer in offers}
    return reasons.pop() if len(reasons) == 1 else None


def _table(offers: list[Quote]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in (_("machine"), "GPU", _("plan"), _("time"), _("price")):
        table.add_column(title, overflow="fold")
    for offer in offers:
        plan = f"✓ {offer.details}" if offer.fits else f"✗ {offer.details}"
        table.add_row(offer.machine, offer.gpu, plan, _time(offer), _price(offer))
    return table


def _time(offer: Quote) -> str:
    if offer.seconds is None or offer.low is None or offer.high is None:
        return ""
    return aside(seconds_text(offer.seconds), range_text(offer.low, offer.high))


def _price(offer: Quote) -> str:
    if not offer.fits or offer.price is None or offer.price.dollars is None:
        return "?" if offer.fits else ""
    if offer.price.dollars == 0:
        return _("free")
    return aside(f"$ {offer.dollars:.2f}", f"$ {offer.price.dollars:.2f}/h")


def _prices_note(offers: list[Quote]) -> str:
    """Return the sources of the prices and the dates on which they were read."""
    dates: dict[str, set[str]] = {}
    for offer in offers:
        if offer.fits and offer.price is not None:
            dates.setdefault(offer.price.source, set()).add(offer.price.read)
    sources = clauses(aside(translate(source), listed(sorted(read))) for source, read in dates.items())
    return _("Price sources: {sources}").format(sources=sources) if sources else ""
