"""Google Colab: a notebook that keeps its checkpoints on Google Drive, which persists between sessions."""

from pathlib import Path

from lorafit.messages import _, noted
from lorafit.transfer.bundle import BundleInfo
from lorafit.transfer.cloud import notebook
from lorafit.transfer.cloud.base import CloudPackage, Platform
from lorafit.transfer.cloud.notebook import NotebookPlatform

OPENING = """\
try:
    from google.colab import drive, files, userdata
except ImportError:
    drive = None
if drive:
    drive.mount("/content/drive")
    try:
        os.environ["HF_TOKEN"] = userdata.get("HF_TOKEN")  # access token for gated models: key icon on the left
    except Exception:
        pass
STORE.mkdir(parents=True, exist_ok=True)
"""

UPLOAD = """\
def upload():
    for name, content in files.upload().items():  # choose the bundle and the wheel
        (STORE / name).write_bytes(content)

"""

CLOSING = """
if drive:
    files.download(str(result))
"""


def notebook_platform() -> NotebookPlatform:
    """Return the Colab-specific parts of the notebook."""
    return NotebookPlatform(
        title="Google Colab",
        intro=_(
            "1. *Runtime > Change runtime type*: choose a GPU (T4 is free; it has no bf16, which "
            "the plan takes into account).\n2. Put `run.zip` and the wheel into the folder "
            "`lorafit` of your Google Drive, or upload them when asked.\n3. *Runtime > Run all*. "
            "Checkpoints are saved to Drive every ten minutes. When the session ends, open the "
            "notebook again and run all cells: training resumes.\n\nGated model: add your access "
            "token as the secret `HF_TOKEN` (key icon on the left)."
        ),
        store="/content/drive/MyDrive/lorafit",
        places=("/content",),
        opening=OPENING,
        upload=UPLOAD,
        closing=CLOSING,
        notes=(noted("access token for gated models: key icon on the left"), noted("choose the bundle and the wheel")),
    )


def check(facts: BundleInfo) -> None:
    """Accept every bundle."""


def write(parcel: CloudPackage, folder: Path) -> list[str]:
    """Write the Colab notebook into `folder` and return the next steps for the user. Raises DiskError."""
    path = notebook.write(notebook_platform(), parcel, folder)
    return [
        _("Open https://colab.research.google.com, *File > Upload notebook*: {path}").format(path=path),
        _("Choose a GPU and run all cells; when asked, upload {files}.").format(files=notebook.files(parcel)),
    ]


TARGET = Platform("Google Colab", ("colab-t4", "colab-l4", "colab-a100"), check, write)
