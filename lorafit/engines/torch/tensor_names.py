"""The names of a model's tensors in its files, and the modules that transformers makes of them.

Files of some types have other names than the modules: prefixes of wrappers, renamed layers. Some tensors are split,
joined or permuted while they are loaded. transformers' own tables decide.
"""

from collections.abc import Iterable
from pathlib import Path

from transformers import AutoConfig, PreTrainedModel

from lorafit.engines.torch.model_class import skeleton_of
from lorafit.errors import AdapterError, ModelError
from lorafit.messages import _, listed

SHOWN = 3  # names in an error


def module_tensors(
    folder: Path, names: Iterable[str], modules: Iterable[str], trust_remote_code: bool = False
) -> dict[str, str]:
    """Return for each of the `modules` the name of its weight among `names`, those in the files of `folder`.

    Raises AdapterError with the modules of which no file has the weight as it is, or whose weight other modules share.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    skeleton = skeleton_of(config, trust_remote_code)
    sources = _sources(skeleton, names)
    found = {module: sources.get(f"{module}.weight") for module in modules}
    if absent := [module for module, name in found.items() if name is None]:
        raise _refused(folder, _("layers whose weights the files do not hold as they are: {names}"), absent)
    if shared := sorted(set(found) & _sharing(skeleton)):
        raise _refused(folder, _("layers that share their weights with others: {names}"), shared)
    return {module: name for module, name in found.items() if name is not None}


def _sources(skeleton: PreTrainedModel, names: Iterable[str]) -> dict[str, str]:
    """Return the tensor in the files of each parameter that transformers takes unchanged."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key
    except ImportError as error:
        fix = _("Install it: {command}").format(command="pip install -U transformers")
        raise ModelError(
            _("The installed transformers cannot name the tensors of a model."), found=error, fix=fix
        ) from None
    parameters = skeleton.state_dict()
    mapping = get_model_conversion_mapping(skeleton)
    converters = [one for one in mapping if isinstance(one, WeightConverter)]
    renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
    prefix = skeleton.base_model_prefix
    found: dict[str, str] = {}
    for name in sorted(names, key=dot_natural_key):
        target, converted = rename_source_key(name, renamings, converters, prefix, parameters)
        if target not in parameters and name in parameters:
            target, converted = rename_source_key(name, [], [], prefix, parameters)
        if target in parameters and converted is None:
            found[target] = name
    return found


def _sharing(skeleton: PreTrainedModel) -> set[str]:
    """Return the modules whose weight is that of another module too, such as a head that is tied to the embedding."""
    users: dict[int, list[str]] = {}
    for name, parameter in skeleton.named_parameters(remove_duplicate=False):
        users.setdefault(id(parameter), []).append(name.removesuffix(".weight"))
    return {name for names in users.values() if len(names) > 1 for name in names}


def _refused(folder: Path, found: str, modules: list[str]) -> AdapterError:
    names = listed([*modules[:SHOWN], *(["..."] if modules[SHOWN:] else [])])
    return AdapterError(
        _("This adapter cannot be merged into the files of its base model."),
        where=folder,
        found=found.format(names=names),
        fix=_("Export the adapter itself: `--to peft`."),
    )
