"""A separate Python environment for LLaMA-Factory, built once in the user's cache from releases that fit together.

LLaMA-Factory's requirements hold back torch, so its packages are installed without their dependencies. PyTorch and the
other common packages come from the current Python, which stands last on the path. All contestants therefore run the
same PyTorch.
"""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from lorafit.paths import cache_folder

LLAMA_FACTORY = "llamafactory-0.9.5"
PACKAGES = {
    LLAMA_FACTORY: [
        "llamafactory==0.9.5", "transformers==5.6.0", "peft==0.18.1", "trl==0.24.0", "accelerate==1.11.0",
        "datasets==4.0.0", "dill<0.3.9", "multiprocess<0.70.17", "fsspec<=2025.3.0", "huggingface_hub<2",
        "tokenizers<=0.23.0", "httpx<1", "httpcore<2", "omegaconf", "antlr4-python3-runtime==4.9.3", "einops", "fire",
        "termcolor", "sentencepiece", "tiktoken", "tyro<0.9", "shtab", "scipy",
    ],
}  # fmt: skip
EMPTY = {LLAMA_FACTORY: ["torchaudio"]}  # empty packages suffice: imported, but never used for text


def python_of(name: str) -> Path:
    """Return the path of the environment's Python, which need not exist yet."""
    return cache_folder() / "peers" / name / "bin" / "python"


def build(name: str) -> Path:
    """Build the environment if it is not complete and return its Python. Raises CalledProcessError if pip fails."""
    folder, python = cache_folder() / "peers" / name, python_of(name)
    stamp = folder / "complete"
    if stamp.is_file():
        return python
    print(f"Building {folder} (once) ...", file=sys.stderr)
    venv.create(folder, clear=True, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*pip, *PACKAGES[name]], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for package in EMPTY[name]:
        (site / package).mkdir(exist_ok=True)
        (site / package / "__init__.py").touch()
    (site / "zz_lent.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
    stamp.touch()
    return python
