"""The file dataset_info.json of LLaMA-Factory: names of data sets in its folder, with their files, columns and tags.

Rows of an entry are renamed to the keys of lorafit's formats. An entry on a hub or with a script is refused with the
way to read it: nothing is fetched because a file says so.
"""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from lorafit.data.readers.row import Broken, Renamed
from lorafit.errors import DataError
from lorafit.messages import _, listed
from lorafit.units import kind_text

NAME = "dataset_info.json"
HUBS = {"hf_hub_url": "", "ms_hub_url": " --hub modelscope"}  # key of an entry -> flag beside --dataset_name
ELSEWHERE = (*HUBS, "om_hub_url", "script_url", "cloud_file_name")
MEDIA = ("images", "videos", "audios")
PREFERENCES = ("chosen", "rejected", "kto_tag")
ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}  # their column -> default, also our key
# Tags of roles, their defaults, and the roles of our formats.
ROLES = {"user_tag": ("human", "user"), "assistant_tag": ("gpt", "assistant"), "observation_tag": ("observation", "tool"),
         "function_tag": ("function_call", "function_call"), "system_tag": ("system", "system")}  # fmt: skip
Entries = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class DatasetEntry:
    """A data set of dataset_info.json: a file or folder, and how its rows are renamed.

    `keys` maps keys of the rows to ours. `roles` maps roles of messages to ours; None for rows without messages.
    """

    folder: Path
    name: str
    path: Path
    keys: Mapping[str, str]
    roles: Mapping[str, str] | None
    role_tag: str
    content_tag: str
    num_samples: int | None

    def row(self, value: object) -> object:
        """Return a row with the keys and roles of our formats; Broken if it lacks a column."""
        if not isinstance(value, dict):
            return value
        needed = [key for key, ours in self.keys.items() if ours in ("instruction", "output", "messages", "text")]
        if missing := [key for key in needed if key not in value]:
            wanted = _("the columns that {file} names: {names}").format(file=NAME, names=listed(missing))
            return Broken(listed(map(str, value))[:300] or _("no keys"), wanted)
        made = {ours: value[key] for key, ours in self.keys.items() if key in value}
        if self.roles is not None:
            made["messages"] = self._messages(made["messages"], self.roles)
        return Renamed(made, {key: field for key, field in value.items() if key not in self.keys})

    def _messages(self, turns: object, roles: Mapping[str, str]) -> object:
        if isinstance(turns, str):  # a cell of a table
            try:
                turns = json.loads(turns)
            except (ValueError, RecursionError):
                return turns
        if not isinstance(turns, list):
            return turns
        return [self._message(turn, roles) if isinstance(turn, dict) else turn for turn in turns]

    def _message(self, turn: dict[str, Any], roles: Mapping[str, str]) -> dict[str, Any]:
        made = {key: value for key, value in turn.items() if key not in (self.role_tag, self.content_tag)}
        if self.role_tag in turn:
            role = turn[self.role_tag]
            made["role"] = roles.get(role, role) if isinstance(role, str) else role
        if self.content_tag in turn:
            made["content"] = turn[self.content_tag]
        return made

    @property
    def recipe(self) -> str:
        """Return a text that identifies how rows are renamed and how many are read."""
        roles = None if self.roles is None else dict(self.roles)
        return json.dumps([dict(self.keys), roles, self.role_tag, self.content_tag, self.num_samples])


def read_entries(folder: Path) -> Entries:
    """Return the entries of the folder's dataset_info.json; none without such a file of LLaMA-Factory.

    `datasets` writes another file of this name. Raises DataError if the file is not JSON.
    """
    path = folder / NAME
    try:
        entries = json.loads(path.read_text("utf-8-sig"))
        json.dumps(entries, ensure_ascii=False).encode()  # refuses halves of surrogate pairs, which no path may contain
    except OSError:
        return {}
    except (ValueError, RecursionError) as error:
        fix = _("Correct the file, or name a data file instead of the folder.")
        raise DataError(_("The list of data sets is not valid JSON."), where=path, found=error, fix=fix) from None
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        return {}
    return entries if any(key in entry for entry in entries.values() for key in ("file_name", *ELSEWHERE)) else {}


def find_entry(folder: Path, name: str) -> DatasetEntry | None:
    """Return the entry `name` of the folder's dataset_info.json; None without such a file. Raises DataError.

    With an empty `name`, the only entry is meant.
    """
    entries = read_entries(folder)
    if not entries:
        return None
    if not name and len(entries) == 1:
        name = next(iter(entries))
    if name not in entries:
        near = difflib.get_close_matches(name, entries, n=3) or list(entries)[:10]
        fix = _("Name one or several of these: {names}.").format(names=listed(str(folder / one) for one in near))
        found = name or _("data sets: {count}").format(count=len(entries))
        raise DataError(_("No such data set in dataset_info.json."), where=folder / NAME, found=found, fix=fix)
    return _EntryReader(folder, name, entries[name]).entry()


class _EntryReader:
    """The checks of one entry. Raises DataError for what is not read."""

    def __init__(self, folder: Path, name: str, entry: dict[str, Any]) -> None:
        self.folder, self.name, self.facts = folder, name, entry
        self.columns, self.tags = self._texts("columns"), self._texts("tags")

    def entry(self) -> DatasetEntry:
        path, form = self._path(), self.facts.get("formatting", "alpaca")
        if form not in ("alpaca", "sharegpt", "openai"):
            raise self._error(_("Unknown formatting of a data set."), str(form), "alpaca, sharegpt, openai")
        if unused := [name for name in MEDIA if self.columns.get(name)]:
            raise self._error(_("Images, videos and audio are not trained on."), listed(unused), None)
        if self.facts.get("ranking") or any(self.columns.get(name) for name in PREFERENCES):
            found = listed(
                [name for name in ("ranking", *PREFERENCES) if self.facts.get(name) or self.columns.get(name)]
            )
            raise self._error(_("Preference data are not for supervised training."), found, None)
        if self.facts.get("split", "train") != "train":
            raise self._error(_("A file has only one split: train."), str(self.facts["split"]), None)
        samples = self.facts.get("num_samples")
        if samples is not None and (not isinstance(samples, int) or samples < 1 or path.is_dir()):
            fix = _("Remove num_samples, and set --dataset_split, such as train[:1000].")
            raise self._error(_("num_samples needs a file and a whole number of rows."), f"num_samples: {samples}", fix)
        roles = None
        if form != "alpaca":
            roles = {self.tags.get(tag, default): ours for tag, (default, ours) in ROLES.items()}
        return DatasetEntry(
            folder=self.folder,
            name=self.name,
            path=path,
            keys=self._alpaca_keys() if form == "alpaca" else self._message_keys(),
            roles=roles,
            role_tag=self.tags.get("role_tag", "from"),
            content_tag=self.tags.get("content_tag", "value"),
            num_samples=samples,
        )

    def _alpaca_keys(self) -> dict[str, str]:
        columns = self.columns or ALPACA
        if columns.get("tools"):
            fix = _("Use messages (formatting: sharegpt), which can have tools.")
            raise self._error(_("Rows without messages cannot have tools."), "columns: tools", fix)
        if "prompt" not in columns:
            raise self._error(_("The entry names no column of the question."), "columns", _("Add `prompt` to columns."))
        if "response" not in columns:  # plain text, as for continued pretraining
            return {columns["prompt"]: "text"}
        ours = {**ALPACA, "system": "system", "history": "history"}
        return {columns[name]: key for name, key in ours.items() if columns.get(name)}

    def _message_keys(self) -> dict[str, str]:
        keys = {self.columns.get("messages", "conversations"): "messages"}
        return keys | {self.columns[name]: name for name in ("system", "tools") if self.columns.get(name)}

    def _texts(self, key: str) -> dict[str, str]:
        """Return the object of texts under `key`; null values are left out."""
        found = self.facts.get(key) or {}
        if not isinstance(found, dict) or not all(isinstance(value, str | None) for value in found.values()):
            raise self._error(_("Invalid value in dataset_info.json."), f"{key}: {kind_text(found)}", None)
        return {name: value for name, value in found.items() if value}

    def _path(self) -> Path:
        name = self.facts.get("file_name")
        if not name and (elsewhere := [key for key in ELSEWHERE if self.facts.get(key)]):
            key, value = elsewhere[0], self.facts[elsewhere[0]]
            fix = _("Download its files yourself, and add file_name to the entry.")
            if key in HUBS:
                fix = _("If you trust it, read it by its ID: {flags}").format(
                    flags=f"--dataset_name {value}{HUBS[key]}"
                )
            raise self._error(_("The data set is not in this folder; it is not fetched."), f"{key}: {value}", fix)
        if not isinstance(name, str) or not name:
            raise self._error(_("The entry names no file."), _("no file_name"), _("Add file_name to the entry."))
        windows = PureWindowsPath(name)
        if (
            windows.anchor
            or windows.drive
            or PurePosixPath(name).is_absolute()
            or ".." in windows.parts
            or "\0" in name
        ):
            fix = _("Give a path inside the folder, or name the file itself: --dataset_name FILE.")
            raise self._error(_("The entry's file is outside the folder of dataset_info.json."), name, fix)
        path = self.folder / name
        try:
            path.stat()
        except FileNotFoundError:
            pass  # found out when the file is opened, with its neighbors
        except OSError as error:  # such as a name that is too long
            raise self._error(_("The file cannot be read."), f"{error.strerror}: {name}", None) from None
        return path

    def _error(self, what: str, found: str, fix: str | None) -> DataError:
        fix = fix or _("Choose another entry, or change this one.")
        return DataError(what, where=f"{self.folder / NAME}: {self.name}", found=found[:300], fix=fix)
