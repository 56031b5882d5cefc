"""The processes after the first of a multi-process run: they train by its orders and write no run files.

The first process starts them as `python -m lorafit.training.follower` and handles Ctrl-C for all.
Processes that torchrun starts call `follow` from the train command.
"""

import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

from lorafit import registry
from lorafit.config import TrainConfig
from lorafit.data.dataset import prepare_cached
from lorafit.data.text_checks import visible
from lorafit.distributed.collectives import Collectives, RankLost
from lorafit.distributed.launch import rank_info
from lorafit.engines.tokenizer import read_template, shared_tokenizer
from lorafit.errors import DataError, LorafitError
from lorafit.ipc.link import Link
from lorafit.messages import _, set_language, use_utf8
from lorafit.models.hub import find_model
from lorafit.planner.plan import Plan
from lorafit.progress import exhaust
from lorafit.run_folders.directory import RunDir
from lorafit.training.loop import Job, Progress, training_loop
from lorafit.training.worker import load_checkpoint, open_engine, stop_signals

FAILED = 2


def follow() -> None:
    """Follow the orders of the first process until training ends.

    Raises LorafitErrors; SystemExit where another process reports the reason.
    """
    try:
        with registry.load(registry.PROCESS_GROUP)(rank_info().count, lambda: None) as ranks:
            _train_by_orders(ranks.broadcast_json(), ranks)
    except RankLost as lost:
        if lost.rank != 0 or lost.self_reported:  # the first process reports it to the user
            raise SystemExit(FAILED) from lost
        raise


def _train_by_orders(orders: dict[str, Any], ranks: Collectives) -> None:
    set_language(orders["language"])
    config, plan = TrainConfig.model_validate(orders["config"]), Plan.of(orders["plan"])
    model = find_model(config.model_name, hub=config.hub, endpoint=config.hf_endpoint)
    template = read_template(config.chat_template)
    load = partial(shared_tokenizer, model.folder, template, config.trust_remote_code)
    data = exhaust(prepare_cached(config, model.folder, load, template))
    if data.digest != plan.data_digest:
        raise DataError(
            _("This process reads different data than the first process."),
            where=config.dataset_name,
            found=f"{data.digest[:16]} != {plan.data_digest[:16]}",
            fix=_("Use the same data and model files on every machine."),
        )
    start = orders["start"] and Path(orders["start"])
    engine = open_engine(config, model, plan, ranks, start)
    if orders["run"] is None:  # a dry run
        return
    progress = Progress(**orders["progress"])
    if orders["resumed"]:
        load_checkpoint(engine, ranks, orders["checkpoint"] and Path(orders["checkpoint"]))
    if progress.recompute is not None:
        engine.set_recompute(progress.recompute)
    link, run = Link(), RunDir(Path(orders["run"]))
    with stop_signals(link):
        for _event in training_loop(
            Job(engine, data.train, data.valid, run, plan, lambda _folder: None, link, ranks), progress
        ):
            pass


def main() -> int:
    """Run `follow` and return the exit code. SIGINT and SIGHUP are ignored: the first process handles them."""
    use_utf8()
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        follow()
    except LorafitError as error:
        print(visible(str(error)), file=sys.stderr)
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
