"""What can be set? Writes docs/cli.md from lorafit/config.py, where alone each setting is written; `--check` only compares."""

import sys
from pathlib import Path

from lorafit.config import TrainConfig

PAGE = Path(__file__).parents[1] / "docs/cli.md"
HEAD = """# Settings of `lorafit train`

Made by `make docs` from `lorafit/config.py`; do not edit. Each is a flag (`--lora_r 16`, hyphens do too) and a key of a
YAML file (`--config FILE`). *What* decides what is learned and is kept on resume; *how* changes only speed, memory and
where things lie. `None` means that the program chooses and says why.

| flag | default | kind | meaning |
|---|---|---|---|
"""


def page() -> str:
    """The whole page."""
    return HEAD + "".join(_row(name) for name in TrainConfig.model_fields)


def _row(name: str) -> str:
    field = TrainConfig.model_fields[name]
    kind = field.json_schema_extra["kind"] if isinstance(field.json_schema_extra, dict) else ""
    return f"| `--{name}` | `{field.default}` | {kind} | {field.description} |\n"


def main() -> int:
    if "--check" in sys.argv[1:]:
        return int(not PAGE.is_file() or PAGE.read_text("utf-8") != page())
    PAGE.write_text(page(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
