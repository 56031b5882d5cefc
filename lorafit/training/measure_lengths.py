"""Row lengths in tokens: a child process that imports the tokenizer, fills the data cache and exits.

`python -m lorafit.training.measure_lengths FOLDER LANGUAGE < settings.json`: preview.py starts it if the
cache lacks the data.
"""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

from lorafit.config import COMMAND_FIELDS, TrainConfig
from lorafit.data.dataset import prepare_cached
from lorafit.engines.tokenizer import read_template, shared_tokenizer
from lorafit.errors import LorafitError
from lorafit.ipc.protocol import message_line, read_message
from lorafit.messages import language, set_language, use_utf8
from lorafit.progress import exhaust

USER = 2


def fill_cache(config: TrainConfig, model_folder: Path) -> None:
    """Render and tokenize the data of `config` in a child process.

    Raises the child's LorafitError, or RuntimeError with its stderr if it fails otherwise.
    """
    settings = json.dumps(config.model_dump(exclude=set(COMMAND_FIELDS), include=set(TrainConfig.model_fields)))
    command = [sys.executable, "-m", "lorafit.training.measure_lengths", str(model_folder), language()]
    done = subprocess.run(command, input=settings, capture_output=True, text=True, encoding="utf-8", errors="replace")
    said = read_message((done.stdout.splitlines() or [""])[-1])
    if isinstance(said, LorafitError):
        raise said
    if done.returncode:
        raise RuntimeError(done.stderr)


def main(argv: list[str]) -> int:
    """Run the child process. Print a LorafitError as JSON and return 2; otherwise return 0."""
    use_utf8()
    set_language(argv[1])
    folder, config = Path(argv[0]), TrainConfig.model_validate_json(sys.stdin.read())
    try:
        template = read_template(config.chat_template)
        load = partial(shared_tokenizer, folder, template, config.trust_remote_code)
        exhaust(prepare_cached(config, folder, load, template))
    except LorafitError as error:
        print(message_line(error))
        return USER
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
