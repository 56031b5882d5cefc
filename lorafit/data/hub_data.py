"""Data sets of the Hugging Face hub, loaded by `datasets`: from its cache if possible, else from the hub."""

from typing import Any

from lorafit.errors import DataError
from lorafit.messages import _
from lorafit.models.hub import ensure_reachable, translate, use_endpoint


def load_split(name: str, split: str, endpoint: str | None) -> Any:
    """Load the whole split with `datasets`: from its cache if possible, else from the hub.

    The split is stored on disk and memory-mapped. Raises DataError or HubError.
    """
    use_endpoint(endpoint)
    import datasets  # takes a second to import; only dataset IDs need it

    if (table := _cached(name, split)) is not None:
        return table
    ensure_reachable(endpoint, name, "dataset")
    try:
        return datasets.load_dataset(name, split=split)
    except ValueError as error:
        if "split" not in str(error):
            raise translate(error, name, "dataset") from None
        fix = _("Set --dataset_split to one of the splits listed above.")
        raise DataError(_("The dataset has no such split."), where=f"{name}:{split}", found=error, fix=fix) from None
    except Exception as error:  # the hub client, its builders and the network raise dozens of types
        raise translate(error, name, "dataset") from None


def _cached(name: str, split: str) -> Any:
    """Return the split from the cache of `datasets`, without a request to a hub, or None."""
    import datasets

    config, logging = vars(datasets.config), datasets.utils.logging
    offline, config["HF_HUB_OFFLINE"] = config["HF_HUB_OFFLINE"], True
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # suppresses a warning about the offline mode
    try:
        return datasets.load_dataset(name, split=split)
    except Exception:  # absent or incomplete; the type of the error depends on the version
        return None
    finally:
        config["HF_HUB_OFFLINE"] = offline
        logging.set_verbosity(level)
