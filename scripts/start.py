"""Entry point of the scripts at the root: each runs a command of `lorafit`, or says how to install lorafit."""

import sys


def start(command: str) -> None:
    """Run `command` with the typed flags and exit with its exit code."""
    try:
        if sys.version_info < (3, 11):
            raise ModuleNotFoundError(f"it is Python {sys.version.split()[0]}")
        from lorafit.cli.app import main
    except ModuleNotFoundError as missing:
        sys.exit(
            f"This Python ({sys.executable}) cannot run lorafit: {missing}.\n"
            "  Use ./run_train.sh, which makes .venv, then .venv/bin/python; or, with Python >= 3.11: "
            "pip install -r requirements.txt\n"
            "当前的 Python 无法运行 lorafit。\n"
            "  请先运行 ./run_train.sh（会创建 .venv），之后使用 .venv/bin/python；或使用 Python >= 3.11 执行："
            "pip install -r requirements.txt"
        )
    sys.exit(main([command, *sys.argv[1:]]))
