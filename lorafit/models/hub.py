"""Resolution of a model name to local files: a folder, the demo, or a hub (Hugging Face, a mirror, ModelScope).

A model in the hub's local cache is used without a request. Each error of a hub becomes a HubError with a fix. The same
errors serve data sets, which the `datasets` package loads (data/sources.py).
"""

import errno
import importlib
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from lorafit.errors import DiskError, HubError, LorafitError, ModelError
from lorafit.messages import _, clauses
from lorafit.models.demo import demo_model
from lorafit.models.download import download_with_progress
from lorafit.models.weight_files import require_folder, weight_files
from lorafit.paths import user_path
from lorafit.progress import ProgressCallback, ignore_progress

Kind = Literal["model", "dataset"]

HUGGING_FACE, MODELSCOPE = "https://huggingface.co", "https://www.modelscope.cn"
MIRROR = "https://hf-mirror.com"
REACH_SECONDS = 8.0  # for name lookup, connection and answer together; the name lookup has no timeout of its own
ALLOW = ["*.json", "*.safetensors", "tokenizer*", "*.jinja", "*.model", "merges.txt", "*.tiktoken"]
IGNORE = ["original/*", "onnx/*", "consolidated*"]  # copies of the weights in other formats
FULL_BYTES = 64 * 1024  # a disk with less room is full
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
# Gated models on Hugging Face: model ID -> (ID on ModelScope, ID of an ungated copy on Hugging Face).
UNGATED_COPIES = {
    "meta-llama/Llama-3.2-1B-Instruct": ("LLM-Research/Llama-3.2-1B-Instruct", "unsloth/Llama-3.2-1B-Instruct"),
    "meta-llama/Llama-3.2-3B-Instruct": ("LLM-Research/Llama-3.2-3B-Instruct", "unsloth/Llama-3.2-3B-Instruct"),
    "meta-llama/Llama-3.1-8B-Instruct": (
        "LLM-Research/Meta-Llama-3.1-8B-Instruct",
        "unsloth/Meta-Llama-3.1-8B-Instruct",
    ),
    "google/gemma-2-2b-it": ("LLM-Research/gemma-2-2b-it", "unsloth/gemma-2-2b-it"),
    "google/gemma-2-9b-it": ("LLM-Research/gemma-2-9b-it", "unsloth/gemma-2-9b-it"),
    "google/gemma-3-1b-it": ("LLM-Research/gemma-3-1b-it", "unsloth/gemma-3-1b-it"),
    "google/gemma-3-4b-it": ("LLM-Research/gemma-3-4b-it", "unsloth/gemma-3-4b-it"),
}


@dataclass(frozen=True)
class FoundModel:
    """A model's local `folder`, and the base model `name` for adapter configs: a model ID, or the absolute folder."""

    folder: Path
    name: str


def find_model(
    name: str,
    *,
    hub: str = "huggingface",
    endpoint: str | None = None,
    say: ProgressCallback = ignore_progress,
    accept: Callable[[Path], None] = lambda folder: None,
) -> FoundModel:
    """Return the local files of the model `name`; download missing files. Raises HubError, ModelError, DiskError.

    `accept` is called with a folder that holds config.json before the weights are downloaded. It may raise ModelError.
    """
    if name == "demo":
        folder = demo_model(say)
        return FoundModel(folder, str(folder))
    if is_local(name):
        folder = user_path(name).absolute()
        require_folder(folder)
        return FoundModel(folder, str(folder))
    try:
        fetch = _from_modelscope if hub == "modelscope" else _from_hugging_face
        return FoundModel(Path(fetch(name, endpoint, say, accept)), name)
    except LorafitError:
        raise
    except Exception as error:  # both hub clients raise their own errors, those of their HTTP client and OSError
        raise translate(error, name, "model", modelscope_address() if hub == "modelscope" else None) from error


def is_local(name: str) -> bool:
    """Return whether `name` is a path: an existing path, or a name that does not have the form owner/name."""
    return name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1 or Path(name).exists()


def endpoint_of(endpoint: str | None = None) -> str:
    """Return the address of the Hugging Face hub: `endpoint`, else HF_ENDPOINT, else huggingface.co."""
    return (endpoint or os.environ.get("HF_ENDPOINT") or HUGGING_FACE).rstrip("/")


def modelscope_address() -> str:
    """Return the address of ModelScope, by the variable that its client reads too."""
    return (os.environ.get("MODELSCOPE_ENDPOINT") or MODELSCOPE).rstrip("/")


def use_endpoint(endpoint: str | None) -> None:
    """Make `huggingface_hub` and `datasets` use `endpoint`. None changes nothing.

    Both packages read HF_ENDPOINT once, at import. If they are already imported (in a notebook), set their constants.
    """
    if not endpoint:
        return
    os.environ["HF_ENDPOINT"] = address = endpoint_of(endpoint)
    if constants := sys.modules.get("huggingface_hub.constants"):
        vars(constants)["ENDPOINT"] = address
        vars(constants)["HUGGINGFACE_CO_URL_TEMPLATE"] = address + "/{repo_id}/resolve/{revision}/{filename}"
    if config := sys.modules.get("datasets.config"):
        vars(config)["HF_ENDPOINT"] = address


def ensure_reachable(endpoint: str | None, name: str, kind: Kind) -> None:
    """Set `endpoint` as by use_endpoint(). Raise HubError if no server answers within REACH_SECONDS.

    The client of the hub retries five times, and has no timeout for a server that accepts the connection but does not
    answer.
    """
    use_endpoint(endpoint)
    _require_answer(endpoint_of(endpoint), name, kind)


def why_unreachable(address: str, seconds: float = REACH_SECONDS) -> object:
    """Return why the server at `address` does not answer within `seconds`, or None if it answers."""
    answer: list[object] = []
    # In a thread, because a name lookup cannot be interrupted otherwise.
    thread = threading.Thread(target=lambda: answer.append(_probe(address)), daemon=True)
    thread.start()
    thread.join(seconds)
    return answer[0] if answer else _("no response within {seconds:.0f} s").format(seconds=seconds)


def _require_answer(address: str, name: str, kind: Kind) -> None:
    if (found := why_unreachable(address, REACH_SECONDS)) is not None:
        raise _unreachable(address, found, name, kind)


def _probe(address: str) -> object:
    """Return None if a server answers at `address`, else the error.

    The request uses the session of huggingface_hub, with its proxies and certificates.
    """
    from huggingface_hub import get_session  # imported here: 0.3 s, which `--help` does not need

    try:
        status = get_session().head(address, timeout=REACH_SECONDS).status_code
    except Exception as error:  # the HTTP library depends on the version of huggingface_hub
        return f"{type(error).__name__}: {error}"
    return None if status < 500 else f"HTTP {status}"


def check_access(name: str, kind: Kind, endpoint: str | None) -> None:
    """Raise HubError if the hub does not give facts about `name`: `datasets` tries again five times and drops the reason."""
    from huggingface_hub import HfApi

    try:
        HfApi(endpoint=endpoint_of(endpoint)).repo_info(name, repo_type=kind, timeout=REACH_SECONDS)
    except Exception as error:  # as in find_model()
        raise translate(error, name, kind, endpoint_of(endpoint)) from None


def translate(error: Exception, name: str, kind: Kind, address: str | None = None) -> LorafitError:
    """Return the HubError or DiskError for an error of a hub client about `name`.

    `address` None: the address of endpoint_of().
    """
    address = address or endpoint_of()
    causes = list(_causes(error))
    if disk := next((c for c in causes if isinstance(c, OSError) and c.errno in DISK_ERRORS), None):
        return _disk(name, disk)
    # By class name, because the classes moved between modules of huggingface_hub and datasets.
    classes = {c.__name__ for cause in causes for c in type(cause).__mro__}
    if "GatedRepoError" in classes or "gated dataset" in str(error):  # `datasets` drops the cause
        return _gated(address, name, kind)
    if classes & {"RepositoryNotFoundError", "DatasetNotFoundError", "HFValidationError", "NotExistError"}:
        return _unknown(address, name, kind, error)
    if full := _full_cache():  # the clients then report a file that is not in the cache
        return _disk(name, full)
    status = next(filter(None, (getattr(getattr(c, "response", None), "status_code", None) for c in causes)), None)
    if status in (401, 403):
        return _refused(address, name, kind, status)
    if status is not None and (status == 429 or status >= 500):
        return _at_fault(address, name, kind, status)
    if classes & {"OfflineModeIsEnabled", "ConnectionError", "ConnectError", "TimeoutException", "TimeoutError"}:
        return _unreachable(address, causes[-1], name, kind)
    return HubError(
        _("The response of the hub cannot be used."),
        where=name,
        found=f"{type(error).__name__}: {error}",
        fix=_("Try again later. {ways}").format(ways=_alternatives(address, name, kind)),
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield `error` and its chain of causes, the root cause last."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _from_hugging_face(name: str, endpoint: str | None, say: ProgressCallback, accept: Callable[[Path], None]) -> str:
    use_endpoint(endpoint)
    from huggingface_hub import constants, hf_hub_download, snapshot_download
    from huggingface_hub.utils import EntryNotFoundError, disable_progress_bars

    try:
        found = snapshot_download(name, local_files_only=True, allow_patterns=ALLOW, ignore_patterns=IGNORE)
        weight_files(Path(found))  # older clients also return an incomplete download
        return found
    except (OSError, ModelError):  # not in the cache, or incomplete
        ensure_reachable(endpoint, name, "model")
    address = endpoint_of(endpoint)
    with suppress(EntryNotFoundError):  # without config.json, the error of the finished download names the files
        config = Path(hf_hub_download(name, "config.json", endpoint=address))
        accept(config.parent)
    say(_("Downloading {name} from {address} ...").format(name=name, address=address))
    disable_progress_bars()  # download_with_progress() reports progress, also if stderr is a pipe
    fetch = partial(snapshot_download, name, allow_patterns=ALLOW, ignore_patterns=IGNORE, endpoint=address)
    folder = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    return download_with_progress(fetch, folder, _total_bytes(name, address), lambda text: say(f"{name}: {text}"))


def _total_bytes(name: str, address: str) -> int | None:
    """Return the size in bytes of all files to download, or None if the hub does not report it."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import filter_repo_objects

    files = HfApi(endpoint=address).model_info(name, files_metadata=True).siblings or []
    wanted = filter_repo_objects(files, allow_patterns=ALLOW, ignore_patterns=IGNORE, key=lambda file: file.rfilename)
    sizes = [file.size for file in wanted]
    return None if None in sizes else sum(size or 0 for size in sizes)


def fetch_modelscope_data(name: str) -> Path:
    """Download the data set `name` from ModelScope and return its folder. Raises HubError."""
    download = _modelscope(name).dataset_snapshot_download
    _require_answer(modelscope_address(), name, "dataset")
    try:
        return Path(download(name))
    except Exception as error:  # any error, as in find_model()
        raise translate(error, name, "dataset", modelscope_address()) from error


def _modelscope(name: str) -> Any:
    if find_spec("modelscope") is None:
        raise HubError(
            _("`--hub modelscope` needs a package that is not installed."),
            where=name,
            found="modelscope",
            fix="pip install modelscope",
        )
    return importlib.import_module("modelscope")


def _from_modelscope(name: str, endpoint: str | None, say: ProgressCallback, accept: Callable[[Path], None]) -> str:
    download = _modelscope(name).snapshot_download
    try:
        folder = str(download(name, local_files_only=True))
        weight_files(Path(folder))
        return folder
    except Exception:  # not in the cache, or incomplete; the error class depends on the version
        _require_answer(modelscope_address(), name, "model")
    folder = str(download(name, allow_patterns=["config.json"]))
    if (Path(folder) / "config.json").is_file():
        accept(Path(folder))
    say(_("Downloading {name} from {address} ...").format(name=name, address=modelscope_address()))
    return str(download(name, allow_patterns=ALLOW, ignore_patterns=IGNORE))


def _unreachable(address: str, found: object, name: str, kind: Kind) -> HubError:
    return HubError(
        _("The hub cannot be reached, and `{name}` is not in the local cache.").format(name=name),
        where=address,
        found=found,
        fix=_("Check the network. {ways}").format(ways=_alternatives(address, name, kind)),
    )


def _alternatives(address: str, name: str, kind: Kind) -> str:
    """Return the text on flags that avoid the hub at `address`."""
    ways = []
    if address == modelscope_address():
        ways.append(_("another hub, `{flags}`").format(flags="--hub huggingface"))
    elif address != MIRROR:
        ways.append(_("a mirror, `{flags}`").format(flags=f"--hf_endpoint {MIRROR}"))
    if kind == "dataset":
        ways.append(_("your own file, `--dataset_name FILE.jsonl`"))
    else:
        if address != modelscope_address():
            flags = f"--hub modelscope --model_name {UNGATED_COPIES.get(name, (name, name))[0]}"
            ways.append(_("another hub, `{flags}`").format(flags=flags))
        ways.append(_("a folder, `--model_name FOLDER`"))
    ways.append(_("`lorafit train --demo`, which needs no hub"))
    return _("Or use one of these: {ways}.").format(ways=clauses(ways))


def _gated(address: str, name: str, kind: Kind) -> HubError:
    log_in = _("Or request access at {page}, then run `hf auth login`.").format(
        page=f"{HUGGING_FACE}/{'datasets/' if kind == 'dataset' else ''}{name}"
    )
    if kind == "dataset":
        ways = _("Use your own file: `--dataset_name FILE.jsonl`.")
    elif name in UNGATED_COPIES:
        modelscope, copy = UNGATED_COPIES[name]
        ways = _("Use an ungated copy of the same model: `{modelscope}` or `{copy}`.").format(
            modelscope=f"--hub modelscope --model_name {modelscope}", copy=f"--model_name {copy}"
        )
    else:
        ways = _(
            "Find it on ModelScope ({page}) and use the model ID there: `--hub modelscope "
            "--model_name OWNER/NAME`; or use an ungated copy, often `--model_name "
            "unsloth/{short}`."
        ).format(page=f"{MODELSCOPE}/models?name={re.sub(r'.*/', '', name)}", short=re.sub(r".*/", "", name))
    return HubError(
        _("`{name}` is gated: its owner requires login and accepting terms first.").format(name=name),
        where=f"{address}/{name}",
        fix=f"{ways} {log_in}",
    )


def _unknown(address: str, name: str, kind: Kind, error: Exception) -> HubError:
    what = _("Model `{name}` not found on the hub.") if kind == "model" else _("Dataset `{name}` not found on the hub.")
    return HubError(
        what.format(name=name),
        where=address,
        found=str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
        fix=_(
            "Check the spelling: OWNER/NAME, as on its page. Write a local folder or file as "
            "`./{name}`. If it is private, run `{login}` first."
        ).format(name=name, login="modelscope login" if address == modelscope_address() else "hf auth login"),
    )


def _refused(address: str, name: str, kind: Kind, status: int) -> HubError:
    login = "modelscope login" if address == modelscope_address() else "hf auth login"
    text = _("Run `{login}` with an access token that may read it, or ask its owner for access. {ways}")
    return HubError(
        _("The hub refuses access to `{name}`.").format(name=name),
        where=address,
        found=f"HTTP {status}",
        fix=text.format(login=login, ways=_alternatives(address, name, kind)),
    )


def _at_fault(address: str, name: str, kind: Kind, status: int) -> HubError:
    return HubError(
        _("The hub allows no more requests at present.") if status == 429 else _("The hub has a fault at present."),
        where=f"{address}: {name}",
        found=f"HTTP {status}",
        fix=_("Try again in a few minutes. {ways}").format(ways=_alternatives(address, name, kind)),
    )


def _full_cache() -> OSError | None:
    """Return the error of a full disk if the disk of the local cache has no room left."""
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser().absolute()
    for folder in (home, *home.parents):
        if folder.is_dir():
            full = shutil.disk_usage(folder).free < FULL_BYTES
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(home)) if full else None
    return None


def _disk(name: str, error: OSError) -> DiskError:
    return DiskError(
        _("`{name}` cannot be written to the local cache.").format(name=name),
        where=error.filename or os.environ.get("HF_HOME") or "~/.cache/huggingface",
        found=error.strerror or error,
        fix=_("Free disk space there, or set HF_HOME to a folder on a disk with enough space."),
    )
