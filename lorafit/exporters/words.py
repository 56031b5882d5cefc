"""What a certificate says, in words: the same lines in the terminal and in the README.md of an export."""

from statistics import median

from lorafit.exporters.certificate import Behaviour, Certificate, Ends, Form, Greedy
from lorafit.exporters.keep import kept_text
from lorafit.messages import _, labelled
from lorafit.units import bytes_text

LITTLE = 0.5  # of a tensor's delta


def told(certificate: Certificate) -> list[str]:
    """Return what a user must know of the figures."""
    notes = []
    if any(found.ratio is None for form in certificate.forms for found in form.behaviour[:1]):
        notes.append(_("The adapter changes nothing on the measured texts."))
    for form in certificate.forms:
        slopes = form.survival.slopes.values() if form.survival else []
        if lost := sum(slope < LITTLE for slope in slopes):
            text = _("{type}: {lost} of {count} tensors keep less than half of the adapter's change.")
            notes.append(text.format(type=form.dtype, lost=lost, count=len(slopes)))
    return notes


def lines(form: Form) -> list[str]:
    """Return what was measured on one form of the model."""
    found = []
    if form.survival is not None and form.survival.slopes:
        text = _("adapter in the weights: {share:.1%} of its change is left after rounding (median of {count} tensors)")
        slopes = form.survival.slopes.values()
        found.append(text.format(share=median(slopes), count=len(slopes)))
    found += [behaviour_text(one) for one in form.behaviour]
    if form.behaviour:
        found.append(losses_text(form.behaviour[0]))
    if form.greedy is not None:
        found.append(greedy_text(form.greedy))
    if form.ends is not None and form.ends.live:
        found.append(ends_text(form.ends))
    if form.strings:
        text = _("chat template and tokenizer in the file: the tokens of the training, on {count} texts")
        found.append(text.format(count=form.strings))
    return found


def title(form: Form) -> str:
    """Return the name of a form with its type and size."""
    text = form.dtype if not form.name else f"{form.name} ({form.dtype})"
    return labelled(text, bytes_text(form.bytes))


def behaviour_text(found: Behaviour) -> str:
    """Return the distance of the answers."""
    rows = {"validation": _("validation rows"), "probe": _("a short public text")}[found.rows]
    text = _(
        "answers as base and adapter do: KL {export:.2g}, where the adapter itself changes {base:.2g} "
        "({rows}, {positions} tokens; same most likely token: {top1:.1%})"
    )
    return text.format(
        export=found.kl_export, base=found.kl_base, rows=rows, positions=found.positions, top1=found.top1
    )


def losses_text(found: Behaviour) -> str:
    """Return the losses, and how much of what was learned is kept."""
    text = _(
        "loss {base:.3f} without the adapter, {live:.3f} with it, {export:.3f} in the export; kept of what was learned: {kept}"
    )
    losses = found.losses
    return text.format(base=losses.base, live=losses.live, export=losses.export, kept=kept_text(found))


def greedy_text(found: Greedy) -> str:
    """Return how greedy answers agree."""
    if not found.parted:
        return _("greedy answers: all {tokens} tokens equal").format(tokens=found.tokens)
    text = _(
        "greedy answers: {equal} of {tokens} tokens equal; {parted} of {prompts} answers part, {close} at a close call"
    )
    return text.format(equal=found.equal, tokens=found.tokens, close=found.close, prompts=found.prompts,
                       parted=found.parted)  # fmt: skip


def ends_text(found: Ends) -> str:
    """Return how many answers end."""
    text = _("ends of answers: the adapter ends {live} of {places} answers there, and the export {export} of these")
    return text.format(live=found.live, places=found.places, export=found.export)
