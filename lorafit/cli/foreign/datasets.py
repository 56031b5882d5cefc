"""The data of other tools' files: LLaMA-Factory's names in dataset_info.json, and Axolotl's list of datasets."""

import json
from pathlib import Path
from typing import Any

from lorafit.cli.foreign.rules import SFT_ONLY, UNSUPPORTED, Keys, Outcome, Rule
from lorafit.messages import noted
from lorafit.paths import user_path

INFO = "dataset_info.json"
COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "system": "system", "history": "history",
           "tools": "tools"}  # fmt: skip
SAME_TURNS = ("messages", "conversations")
READ_TYPES = ("alpaca", "chat_template", "sharegpt")
BUILDERS = ("json", "csv", "parquet", "arrow")  # paths that name a kind of file; data_files has the files
KNOWN_PARTS = {"path", "type", "split", "data_files", "ds_type", "field_messages", "roles_to_train", "conversation",
               "message_property_mappings", "message_field_role", "message_field_content", "roles", "chat_template",
               "train_on_eos"}  # fmt: skip
NO_INFO = noted("dataset_dir has no dataset_info.json here; `--dataset_name` names files")
UNREADABLE = noted("dataset_info.json cannot be read")
NOT_LISTED = noted("dataset_info.json has no such name")
SCRIPT = noted("scripts that load data are not run; name a file or a dataset ID")
COLUMN_NAMES = noted("its columns cannot be renamed here; rename them in the file")
TWO_SPLITS = noted("one split for all sources")
TYPES = noted("this type of dataset is not read; alpaca, chat_template and sharegpt are")
PARTS = noted("this dataset has keys without a counterpart")
FORMAT_FOUND = noted("the format of each row is recognized")


def llama_factory(setting: str) -> Rule:
    """Return the rule of dataset or eval_dataset: names in dataset_info.json become files and dataset IDs."""

    def rule(value: Any, keys: Keys) -> Outcome:
        names = value if isinstance(value, list) else [name.strip() for name in str(value).split(",") if name.strip()]
        folder = user_path(str(keys.get("dataset_dir") or "data"))
        if not (folder / INFO).is_file():
            return Outcome({setting: ",".join(str(folder / str(name)) for name in names)}, NO_INFO)
        try:
            info = json.loads((folder / INFO).read_text("utf-8"))
            entries = {name: dict(info[name]) for name in names if name in info}
        except (OSError, ValueError, TypeError):
            return Outcome({}, UNREADABLE, refused=True)
        if len(entries) < len(names):
            return Outcome({}, NOT_LISTED, refused=True, names=tuple(str(one) for one in names if one not in entries))
        return _registered(setting, folder, entries, on_modelscope=bool(keys.get("use_modelscope_hub")))

    return rule


def _registered(setting: str, folder: Path, entries: dict[Any, dict[str, Any]], on_modelscope: bool) -> Outcome:
    """Return the settings of the `entries` of dataset_info.json."""
    hub = "ms_hub_url" if on_modelscope else "hf_hub_url"
    sources: list[str] = []
    renamed: dict[str, str] = {}
    for entry in entries.values():
        if entry.get("ranking") or "kto_tag" in (entry.get("columns") or {}):
            return Outcome({}, SFT_ONLY, refused=True)
        if entry.get("subset") or entry.get("folder") or entry.get("num_samples"):
            return Outcome({}, PARTS, refused=True)
        if not (entry.get("file_name") or entry.get(hub)):
            return Outcome({}, SCRIPT, refused=True)
        sources.append(str(folder / entry["file_name"]) if entry.get("file_name") else str(entry[hub]))
        for theirs, column in (entry.get("columns") or {}).items():
            if column in (None, "") or (theirs == "messages" and column in SAME_TURNS):
                continue
            ours = "conversations" if theirs == "messages" else COLUMNS.get(theirs)
            if ours is None or renamed.get(column, ours) != ours:
                return Outcome({}, COLUMN_NAMES, refused=True)
            renamed[str(column)] = ours
    pairs = [f"{column}={ours}" for column, ours in renamed.items() if column != ours]
    return Outcome({setting: ",".join(sources)} | ({"field_map": ",".join(pairs)} if pairs else {}), FORMAT_FOUND)


def axolotl(setting: str, split_setting: str) -> Rule:
    """Return the rule of datasets or test_datasets: a list of {path, type, split, data_files}."""

    def rule(value: Any, keys: Keys) -> Outcome:
        parts = value if isinstance(value, list) else [value]
        if not parts or not all(isinstance(part, dict) and part.get("path") for part in parts):
            return Outcome({}, PARTS, refused=True)
        given = [{name: one for name, one in part.items() if one is not None} for part in parts]
        if unknown := sorted({str(name) for part in given for name in part} - KNOWN_PARTS):
            return Outcome({}, PARTS, refused=True, names=tuple(unknown))
        if any(str(part.get("type", "alpaca")).partition(".")[0] not in READ_TYPES for part in given):
            return Outcome({}, TYPES, refused=True)
        if any(part.get("roles_to_train", ["assistant"]) not in (["assistant"], ["gpt"], ["assistant", "gpt"])
               or part.get("chat_template", "tokenizer_default") != "tokenizer_default" for part in given):  # fmt: skip
            return Outcome({}, UNSUPPORTED, refused=True)
        splits = {str(part.get("split", "train")) for part in given}
        if len(splits) > 1:
            return Outcome({}, TWO_SPLITS, refused=True)
        made = {setting: ",".join(source for part in given for source in _files(part))}
        fields = {part["field_messages"] for part in given if part.get("field_messages", "messages") not in SAME_TURNS}
        if len(fields) > 1:
            return Outcome({}, COLUMN_NAMES, refused=True)
        made |= {"field_map": f"{fields.pop()}=messages"} if fields else {}
        return Outcome(made | ({} if splits == {"train"} else {split_setting: splits.pop()}), FORMAT_FOUND)

    return rule


def _files(part: dict[str, Any]) -> list[str]:
    """Return the files of a dataset: its data_files below a folder, or its path."""
    files = part.get("data_files")
    if not files:
        return [str(part["path"])]
    names = files if isinstance(files, list) else [files]
    folder = Path() if part["path"] in BUILDERS else user_path(str(part["path"]))
    return [str(folder / str(name)) for name in names]
