"""The choice of --keep: the smallest type of weights that keeps a share of what was learned."""

from collections.abc import Callable, Iterable

from lorafit.errors import ConfigError, ExportError
from lorafit.exporters.certificate import Behaviour, Form
from lorafit.exporters.kept import losses
from lorafit.exporters.measure import Reference
from lorafit.messages import _, clauses

FLAG = "--keep"


def require_known_gain(wanted: Reference | str) -> None:
    """Raise ConfigError if nothing was measured (then `wanted` says why), or if the gain lies within its interval."""
    fix = _("Choose the type of the weights yourself, without {flag}.").format(flag=FLAG)
    if isinstance(wanted, str):
        raise ConfigError(_("{flag} needs measured answers of the export.").format(flag=FLAG), found=wanted, fix=fix)
    kind = next(iter(wanted.texts))
    base, live = wanted.base[kind].losses, wanted.live[kind].losses
    found = losses(base, live, live)
    if found.kept is None:
        text = _(
            "loss {base:.3f} without the adapter, {live:.3f} with it; interval (95%) of the gain: {low:.3f} to {high:.3f}"
        )
        figures = text.format(base=found.base, live=found.live, low=found.gain[1], high=found.gain[2])
        raise ConfigError(_("It cannot be said how much was learned, so {flag} cannot choose.").format(flag=FLAG),
                          found=figures, fix=fix)  # fmt: skip


def smallest(kinds: Iterable[str], share: float, try_kind: Callable[[str], Form], drop: Callable[[str], None]) -> Form:
    """Return the form of the first of `kinds`, smallest first, whose interval's lower end keeps `share`.

    `try_kind` writes and measures a form, and may refuse it by ExportError; `drop` deletes it. Raises ExportError if all
    keep less.
    """
    told = []
    for kind in kinds:
        try:
            form = try_kind(kind)
        except ExportError as error:
            drop(kind)
            told.append(f"{kind}: {error.found or error.what}")
            continue
        if keeps(form.behaviour[0], share):
            return form
        drop(kind)
        told.append(f"{kind}: {kept_text(form.behaviour[0])}")
    raise ExportError(
        _("No type of weights keeps {share:.0%} of what was learned.").format(share=share),
        found=clauses(told),
        fix=_("Give a smaller share, or measure on more validation rows: the interval gets narrower."),
    )


def keeps(found: Behaviour, share: float) -> bool:
    """Return whether the lower end of the interval is at least `share`."""
    return found.losses.kept is not None and found.losses.kept[1] >= share


def kept_text(found: Behaviour) -> str:
    """Return the share of what was learned that is kept, with its interval."""
    if found.losses.kept is None:
        return _("cannot be said")
    share, low, high = found.losses.kept
    return _("{share:.1%} ({low:.1%} to {high:.1%})").format(share=share, low=low, high=high)
