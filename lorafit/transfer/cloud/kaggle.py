"""Kaggle: a notebook. The disk is empty in each session, so the output of one session is an input of the next."""

from pathlib import Path

from lorafit.messages import _, noted
from lorafit.transfer.bundle import BundleInfo
from lorafit.transfer.cloud import notebook
from lorafit.transfer.cloud.base import CloudPackage, Platform
from lorafit.transfer.cloud.notebook import NotebookPlatform

OPENING = """\
try:
    from kaggle_secrets import UserSecretsClient

    os.environ["HF_TOKEN"] = UserSecretsClient().get_secret("HF_TOKEN")  # access token for gated models: Add-ons > Secrets
except Exception:
    pass
STORE.mkdir(parents=True, exist_ok=True)
"""

UPLOAD = """\
if not (find("*.zip") or find("bundle.json")):
    raise SystemExit("Add the dataset with run.zip and the wheel: Add Input, on the right.")

"""


def notebook_platform() -> NotebookPlatform:
    """Return the Kaggle-specific parts of the notebook."""
    return NotebookPlatform(
        title="Kaggle",
        intro=_(
            "1. *Datasets > New Dataset*: upload `run.zip` and the wheel. In the notebook: *Add "
            "Input* > that dataset.\n2. *Session options*: accelerator **GPU T4 x2**, internet "
            "on. Current builds of PyTorch do not support the P100, whose architecture is older "
            "than Turing. Neither GPU has bf16, which the plan takes into account.\n3. *Save "
            "Version > Save & Run All*. A session ends after 12 hours, for some accounts after "
            "9. Training saves and stops before that, and `result.zip` is kept as the version's "
            "output.\n4. Not finished? *Add Input* > *Notebook Output Files* of this notebook, "
            "then save a version again: training resumes from there.\n\nGated model: add your "
            "access token as the secret `HF_TOKEN` (*Add-ons > Secrets*)."
        ),
        store="/kaggle/working",
        places=("/kaggle/input",),
        opening=OPENING,
        upload=UPLOAD,
        closing="shutil.rmtree(OUTPUT)  # result.zip holds everything\n",
        hours=8.0,
        fresh=True,
        notes=(
            noted("access token for gated models: Add-ons > Secrets"),
            noted("Add the dataset with run.zip and the wheel: Add Input, on the right."),
            noted("result.zip holds everything"),
        ),
    )


def check(facts: BundleInfo) -> None:
    """Accept every bundle."""


def write(parcel: CloudPackage, folder: Path) -> list[str]:
    """Write the Kaggle notebook into `folder` and return the next steps for the user. Raises DiskError."""
    path = notebook.write(notebook_platform(), parcel, folder)
    return [
        _("At https://www.kaggle.com, create a dataset from {files}.").format(files=notebook.files(parcel)),
        _("*Create > New Notebook > File > Import Notebook*: {path}; add the dataset as its input.").format(path=path),
        _("Choose GPU T4 x2 and turn internet on, then *Save Version > Save & Run All*."),
    ]


TARGET = Platform("Kaggle", ("kaggle-t4x2", "kaggle-p100"), check, write)
