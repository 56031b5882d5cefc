"""Data sets of the Hugging Face hub, loaded by `datasets`: from its cache if possible, else from the hub."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lorafit.data.readers.reading import Reading
from lorafit.data.readers.row import Row
from lorafit.errors import DataError, HubError
from lorafit.messages import _, listed
from lorafit.models.hub import check_access, ensure_reachable, translate, use_endpoint

NO_SUBSET = re.compile(r"Config name is missing|BuilderConfig .* not found", re.DOTALL)
SUBSETS = re.compile(r"(?:available configs: |Available: )\[(.*?)\]", re.DOTALL)
UNNAMED = "default"  # the name of the subset of a data set without subsets


class Subset(NamedTuple):
    """The subset of a data set that the user chose (None: none), and the setting that chooses it."""

    name: str | None = None
    setting: str = "dataset_subset"


ANY_SUBSET = Subset()


@dataclass(frozen=True)
class HubPart:
    """A split of a hub's data set as `datasets` stores it: on disk, memory-mapped."""

    file: str
    table: Any
    subset: str | None

    def rows(self, reading: Reading) -> Iterator[Row]:
        if self.subset is None and (name := _subset_of(self.table)) is not None:
            reading.say(self.file, _("the subset {name}").format(name=name))
        return (Row(self.table[i], self.file, i + 1) for i in range(len(self.table)))

    def content(self, content_of: Callable[[Path], str]) -> str:
        known = str(getattr(self.table, "_fingerprint", "")) or self.file
        return known if self.subset is None else f"{known} {self.subset}"


def hub_part(name: str, split: str, subset: Subset, endpoint: str | None) -> HubPart:
    """Return the split of a data set on the hub. Raises DataError or HubError."""
    label = name if subset.name is None else f"{name}/{subset.name}"
    return HubPart(f"{label}:{split}", load_split(name, split, subset, endpoint), subset.name)


def load_split(name: str, split: str, subset: Subset, endpoint: str | None) -> Any:
    """Load the whole split with `datasets`: from its cache if possible, else from the hub.

    The split is stored on disk and memory-mapped. Raises DataError or HubError.
    """
    use_endpoint(endpoint)
    import datasets  # takes a second to import; only dataset IDs need it

    table = _cached(name, split, subset.name)
    # A subset that was not asked for may be the only one, or one of several: only the hub knows.
    if table is not None and (subset.name is not None or _subset_of(table) is None):
        return table
    try:
        ensure_reachable(endpoint, name, "dataset")
    except HubError:
        if table is None:
            raise
        return table
    check_access(name, "dataset", endpoint)
    try:
        return datasets.load_dataset(name, subset.name, split=split)
    except ValueError as error:
        if NO_SUBSET.search(str(error)):
            raise _no_subset(name, subset, str(error)) from None
        if "split" not in str(error):
            raise translate(error, name, "dataset") from None
        fix = _("Set --dataset_split to one of the splits listed above.")
        raise DataError(_("The dataset has no such split."), where=f"{name}:{split}", found=error, fix=fix) from None
    except Exception as error:  # the hub client, its builders and the network raise dozens of types
        raise translate(error, name, "dataset") from None


def _subset_of(table: Any) -> str | None:
    """Return the name of the subset that `table` is, or None if its data set has no subsets."""
    name = getattr(table.info, "config_name", None)
    return None if name == UNNAMED else name


def _no_subset(name: str, subset: Subset, told: str) -> DataError:
    match = SUBSETS.search(told)
    known = re.findall(r"""['"](.+?)['"]""", match[1]) if match else []
    return DataError(
        _("The dataset has several subsets, and none is chosen.")
        if subset.name is None
        else _("The dataset has no such subset."),
        where=name,
        found=subset.name,
        fix=_("Set {flag} to one of these: {known}.").format(flag=f"--{subset.setting}", known=listed(known) or told),
    )


def _cached(name: str, split: str, subset: str | None) -> Any:
    """Return the split from the cache of `datasets`, without a request to a hub, or None."""
    import datasets

    config, logging = vars(datasets.config), datasets.utils.logging
    offline, config["HF_HUB_OFFLINE"] = config["HF_HUB_OFFLINE"], True
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # suppresses a warning about the offline mode
    try:
        return datasets.load_dataset(name, subset, split=split)
    except Exception:  # absent or incomplete; the type of the error depends on the version
        return None
    finally:
        config["HF_HUB_OFFLINE"] = offline
        logging.set_verbosity(level)
