"""The shape of a model on a hub, from its config.json and safetensors headers only.

A header has at most a few hundred KB and is requested by byte range. A 70B model takes 30 small requests.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafit.errors import HubError, LorafitError, ModelError
from lorafit.messages import _
from lorafit.models.demo import FILES, FOLDER
from lorafit.models.hub import (
    ALLOW,
    IGNORE,
    endpoint_of,
    ensure_reachable,
    is_local,
    modelscope_address,
    translate,
    use_endpoint,
)
from lorafit.models.spec import ModelSpec, spec_from
from lorafit.models.trainable import check_trainable
from lorafit.models.weight_files import INDEX, WEIGHTS, Header, parse_headers, weight_files
from lorafit.paths import cache_folder, user_path

SECONDS = 20.0  # timeout of a request
HEAD_BYTES = 256 * 1024  # size of the first request; most headers are shorter
MOST_HEAD_BYTES = 100_000_000  # the limit of the safetensors format


def local_folder(name: str) -> Path | None:
    """Return the folder of the model `name` on this disk: a path, the demo, or the cache of huggingface_hub.

    Return None if the demo or the cached model is absent or incomplete. A path is not checked.
    """
    if name == "demo":
        folder = cache_folder() / FOLDER
        return folder if all((folder / file).is_file() for file in FILES) else None
    if is_local(name):
        return user_path(name).absolute()
    from huggingface_hub import snapshot_download  # imported here: 0.3 s, needed only for model IDs

    try:
        folder = Path(snapshot_download(name, local_files_only=True, allow_patterns=ALLOW, ignore_patterns=IGNORE))
        weight_files(folder)
    except (OSError, ValueError, LorafitError):
        return None
    return folder


@dataclass(frozen=True)
class RemoteModel:
    """A model on a hub. `root` + file name is the URL of a file; `headers` are HTTP headers for each request."""

    name: str
    root: str
    headers: dict[str, str]

    def read_range(self, file: str, start: int, stop: int) -> bytes:
        """Return the bytes [start, stop) of `file`, fewer at its end. Raises the errors of huggingface_hub."""
        asked = self.fetch(file, {"Range": f"bytes={start}-{stop - 1}"})
        return asked if len(asked) <= stop - start else asked[start:stop]  # a server may ignore Range

    def fetch(self, file: str, extra: dict[str, str] | None = None) -> bytes:
        """Return the content of `file`; `extra` are more HTTP headers. Raises the errors of huggingface_hub."""
        from huggingface_hub import get_session, utils

        answer = get_session().get(self.root + file, headers={**self.headers, **(extra or {})}, timeout=SECONDS)
        utils.hf_raise_for_status(answer)
        content: bytes = answer.content
        return content


def remote_spec(
    name: str, hub: str = "huggingface", endpoint: str | None = None, trust_remote_code: bool = False
) -> ModelSpec:  # fmt: skip
    """Return the shape of the model `name` on a hub. Raises HubError or ModelError.

    A model that cannot be trained is refused before the headers of its weights are requested.
    """
    remote = _remote(name, hub, endpoint)
    try:
        config = json.loads(remote.fetch("config.json"))
        check_trainable(config, name, trust_remote_code)
        headers = [header for file in _weight_files(remote) for header in _headers(remote, file)]
    except LorafitError:
        raise
    except Exception as error:  # errors of the hub client and of damaged files
        raise translate(error, name, "model", modelscope_address() if hub == "modelscope" else None) from error
    return spec_from(config, headers, Path(name))


def _remote(name: str, hub: str, endpoint: str | None) -> RemoteModel:
    if hub == "modelscope":
        return RemoteModel(name, f"{modelscope_address()}/models/{name}/resolve/master/", {})
    ensure_reachable(endpoint, name, "model")
    use_endpoint(endpoint)
    from huggingface_hub import utils

    headers = dict(utils.build_hf_headers())
    return RemoteModel(name, f"{endpoint_of(endpoint)}/{name}/resolve/main/", headers)


def _weight_files(remote: RemoteModel) -> list[str]:
    """Return the names of the weight files: those in the index, or model.safetensors if there is no index."""
    try:
        return sorted(set(json.loads(remote.fetch(INDEX))["weight_map"].values()))
    except Exception as error:
        if type(error).__name__ not in ("EntryNotFoundError", "RemoteEntryNotFoundError"):
            raise
    return [WEIGHTS]


def _headers(remote: RemoteModel, file: str) -> list[Header]:
    start = remote.read_range(file, 0, HEAD_BYTES)
    length = int.from_bytes(start[:8], "little")
    if not 0 < length < MOST_HEAD_BYTES:
        raise HubError(
            _("This weight file on the hub is not safetensors."),
            where=f"{remote.name}/{file}",
            fix=_("Choose a safetensors version on the model's page."),
        )
    head = start[8 : 8 + length]
    if len(head) < length:
        head += remote.read_range(file, 8 + len(head), 8 + length)
    lines: dict[str, Any] = json.loads(head)
    try:
        return parse_headers(lines, 8 + length)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            _("This file is not safetensors, or its header is damaged."), where=f"{remote.name}/{file}", found=error
        ) from None
