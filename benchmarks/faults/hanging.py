"""The lorafit command with a worker that hangs once for each file named "hang" that is put into the output folder.

`hanging.py train ...` is the command. It starts `hanging.py` without arguments as the worker, in place of
lorafit.training.child.
"""

import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from lorafit.cli import app
from lorafit.config import TrainConfig
from lorafit.events import Event
from lorafit.ipc.link import Link
from lorafit.ipc.protocol import Message
from lorafit.supervisor import supervise
from lorafit.training import child
from lorafit.training.worker import train_in_process


def hanging_work(config: TrainConfig, link: Link) -> Iterator[Event]:
    """Train in this process, but delete the file "hang" once it appears and hang at that heartbeat."""
    flag = Path(config.output_dir) / "hang"

    def beat(*message: Message) -> None:
        if flag.exists():
            flag.unlink()
            time.sleep(1e6)
        Link.beat(link, *message)

    link.beat = beat  # type: ignore[method-assign]
    return train_in_process(config, link)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(child.main(hanging_work))
    supervise.supervise = partial(supervise.supervise, command=[sys.executable, __file__])
    sys.exit(app.main())
