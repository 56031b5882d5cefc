"""Selection of the linear layers that get an adapter, by the names in `lora_targets`."""

from collections.abc import Sequence

from lorafit.errors import ConfigError
from lorafit.messages import _, listed

ALL = "all-linear"


def matching_names(names: Sequence[str], targets: str) -> list[str]:
    """Return the full names in `names` that `targets` selects: all-linear, or last parts separated by commas."""
    if targets == ALL:
        return list(names)
    ends = tuple(f".{target}" for target in _split(targets))
    return [name for name in names if f".{name}".endswith(ends)]


def select_targets(names: Sequence[str], targets: str) -> list[str]:
    """Return `matching_names`. Raise ConfigError if `targets` is empty or one of its names matches no layer."""
    wanted = _split(targets)
    missing = [one for one in wanted if targets != ALL and not matching_names(names, one)]
    if missing or not wanted:
        short = sorted({name.rpartition(".")[2] for name in names})
        raise ConfigError(
            _("lora_targets names layers that this model does not have."),
            where=f"lora_targets: {targets}",
            found=listed(missing),
            fix=_("Choose from these layers: {names}; or use all-linear.").format(names=listed(short)),
        )
    return matching_names(names, targets)


def _split(targets: str) -> list[str]:
    return [name.strip() for name in targets.split(",") if name.strip()]
