"""Selection of the linear layers that get an adapter."""

from lorafit.errors import ConfigError
from lorafit.messages import _, listed


def find_targets(linears: list[str], targets: str) -> list[str]:
    """Return the full names in `linears` that `targets` selects: all-linear, or names separated by commas.

    Raise ConfigError if a name matches no layer.
    """
    if targets == "all-linear":
        return linears
    wanted = [name.strip() for name in targets.split(",") if name.strip()]
    missing = [w for w in wanted if not any(n == w or n.endswith("." + w) for n in linears)]
    if missing or not wanted:
        short = sorted({name.rpartition(".")[2] for name in linears})
        raise ConfigError(
            _("lora_targets names layers that this model does not have."),
            where=f"lora_targets: {targets}",
            found=listed(missing),
            fix=_("It has: {names}; or use all-linear.").format(names=listed(short)),
        )
    return [n for n in linears if any(n == w or n.endswith("." + w) for w in wanted)]
