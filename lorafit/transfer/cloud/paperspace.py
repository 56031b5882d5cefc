"""Paperspace Gradient: a notebook. /storage persists between sessions and is shared by all notebooks of a team."""

from pathlib import Path

from lorafit.messages import _, noted
from lorafit.transfer.bundle import BundleInfo
from lorafit.transfer.cloud import notebook
from lorafit.transfer.cloud.base import CloudPackage, Platform
from lorafit.transfer.cloud.notebook import NotebookPlatform

OPENING = """\
STORE.mkdir(parents=True, exist_ok=True)
if STORE.is_relative_to("/storage"):
    os.environ.setdefault("HF_HOME", "/storage/huggingface")  # download the model once, not in every session
"""

UPLOAD = """\
def upload():
    raise SystemExit("Upload the bundle and the wheel next to this notebook (folder icon on the left), then run all cells.")

"""


def notebook_platform() -> NotebookPlatform:
    """Return the Gradient-specific parts of the notebook."""
    return NotebookPlatform(
        title="Paperspace Gradient",
        intro=_(
            "1. *Create a notebook* with the PyTorch template and a GPU.\n2. Upload `run.zip`, "
            "the wheel and this notebook (folder icon on the left).\n3. *Run all*. Checkpoints "
            "are saved to `/storage` every ten minutes. When the session ends (free machines: "
            "after 6 hours, or as set by auto-shutdown), start it again and run all cells: "
            "training resumes.\n\nGated model: add your access token under *Settings > Secrets* as "
            "`HF_TOKEN`; it becomes an environment variable."
        ),
        store="/storage/lorafit",
        places=("/notebooks", "."),
        opening=OPENING,
        upload=UPLOAD,
        closing="shutil.copy(result, pathlib.Path.cwd())  # in the file list: right-click > Download\n",
        notes=(
            noted("download the model once, not in every session"),
            noted(
                "Upload the bundle and the wheel next to this notebook (folder icon on the left), then run all cells."
            ),
            noted("in the file list: right-click > Download"),
        ),
    )


def check(facts: BundleInfo) -> None:
    """Accept every bundle."""


def write(parcel: CloudPackage, folder: Path) -> list[str]:
    """Write the Gradient notebook into `folder` and return the next steps for the user. Raises DiskError."""
    path = notebook.write(notebook_platform(), parcel, folder)
    return [
        _("At https://console.paperspace.com, create a notebook with the PyTorch template and a GPU."),
        _("Upload {path} and {files}, open the notebook, and run all cells.").format(
            path=path, files=notebook.files(parcel)
        ),
    ]


TARGET = Platform("Paperspace Gradient", ("paperspace-a4000", "paperspace-a100"), check, write)
