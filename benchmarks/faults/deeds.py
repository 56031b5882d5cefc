"""Kinds of faults: each is a function that waits for its moment, disturbs a training run and checks the reaction.

`rng` decides moments. `missing` says why a kind is impossible on this machine (it needs root, cgroups or a C compiler).
"""

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from faults.training import POLL_SECONDS, SAVE_STEPS, FinishedTooEarly, NotSurvived, Training
from lorafit.events import Moved, Restarted, Shrunk, Started, Stopped
from lorafit.ipc.signals import ONE_REQUEST_SECONDS
from lorafit.run_folders.checkpoint import latest_good, step_of
from lorafit.supervisor.watchdog import BUSY_PATIENCE

Fault = Callable[[Training, random.Random], None]
CGROUP = Path("/sys/fs/cgroup")
CLOCK = Path(__file__).with_name("clock.c")
HANG_SECONDS = 3
PAIRS = ((signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGTERM), (signal.SIGHUP, signal.SIGHUP),
         (signal.SIGHUP, signal.SIGINT))  # fmt: skip
MIB = 1 << 20


def kill_any_time(training: Training, rng: random.Random) -> None:
    """Send SIGKILL to the worker at any moment: while it loads, computes or saves."""
    training.wait(lambda: training.run, "a run's folder")
    time.sleep(rng.uniform(0, 8))
    training.wait_for_another(training.signal_worker(signal.SIGKILL))


def kill_while_saving(training: Training, rng: random.Random) -> None:
    """Send SIGKILL to the worker in the middle of a save."""
    training.wait_for_step(training.step + 1)
    run = training.run
    assert run is not None
    training.wait(lambda: any(run.checkpoints.glob(".tmp-*/*.safetensors")), "a save", POLL_SECONDS / 10)
    time.sleep(rng.uniform(0, 0.02))
    training.wait_for_another(training.signal_worker(signal.SIGKILL))


def kill_supervisor(training: Training, rng: random.Random) -> None:
    """Send SIGKILL to the supervisor; its worker saves and exits, and the run is resumed at once."""
    training.wait_for_step(training.step + rng.randint(1, 3))
    assert training.process is not None
    training.process.kill()
    training.said()
    training.start()


def kill_all(training: Training, rng: random.Random) -> None:
    """Send SIGKILL to all processes at once and resume the run."""
    training.wait_for_step(training.step + rng.randint(1, 3))
    training.kill_group()
    training.start()


def terminate(training: Training, rng: random.Random) -> None:
    """Send SIGTERM: the step is finished and saved, the exit code is 143; resume the run."""
    _stop(training, rng, [signal.SIGTERM], 143)


def interrupt_twice(training: Training, rng: random.Random) -> None:
    """Send SIGINT twice (Ctrl-C), again before the step is done: the exit code is 130; resume the run."""
    _stop(training, rng, [signal.SIGINT, signal.SIGINT], 130)


def stop_for_a_while(training: Training, rng: random.Random) -> None:
    """Send SIGSTOP to the worker and SIGCONT later; raise NotSurvived if the worker is restarted as hung."""
    training.wait_for_step(training.step + 1)
    restarts = len(training.of(Restarted))
    training.signal_worker(signal.SIGSTOP)
    time.sleep(rng.uniform(1, 4))
    training.signal_worker(signal.SIGCONT)
    training.wait_for_step(training.step + 1)
    if len(training.of(Restarted)) > restarts:
        raise NotSurvived("a stopped worker was taken for a hanging one")


def suspend_all(training: Training, rng: random.Random) -> None:
    """Send SIGSTOP to supervisor and worker and SIGCONT later; the end shows whether the worker was restarted as hung.

    The time would be too long even for a busy worker if the supervisor did not notice that it was suspended too.
    """
    training.wait_for_new_step()
    training.signal_group(signal.SIGSTOP)
    time.sleep(HANG_SECONDS * BUSY_PATIENCE + rng.uniform(2, 6))
    training.signal_group(signal.SIGCONT)


def double_signal(training: Training, rng: random.Random) -> None:
    """Send one stop as two signals: to supervisor and worker, then to the supervisor or both again; resume the run.

    `timeout` and a terminal that closes do so. No step is lost or abandoned, and the exit code is that of the first.
    """
    first, second = rng.choice(PAIRS)
    training.wait_for_new_step()
    assert training.process is not None
    training.signal_group(first)
    time.sleep(rng.uniform(0, ONE_REQUEST_SECONDS - 0.3))  # less, because this machine may deliver the second one late
    rng.choice((training.process.send_signal, training.signal_group))(second)
    said = _said_on_stop(training, [first, second], 128 + first)
    if "Stopped at once" in said:
        raise NotSurvived(f"{first} and {second} were two requests:\n{said[-1000:]}")
    check_saved_on_stop(training)
    training.start()


def rename_folder(training: Training, rng: random.Random) -> None:
    """Rename the run's folder at any moment of the training or in the middle of a save; sometimes kill the worker next."""
    training.wait_for_new_step()
    run = training.run
    assert run is not None
    if rng.random() < 0.5:
        training.wait(lambda: any(run.path.rglob(".tmp-*/*")), "a save", POLL_SECONDS / 10)
    else:
        time.sleep(rng.uniform(0, 1.5))
    place = run.path.with_name(f"renamed-{rng.randrange(10**6)}")
    run.path.rename(place)
    if rng.random() < 0.3:
        training.signal_worker(signal.SIGKILL)
    training.wait(lambda: str(place) in [getattr(e, "run", "") for e in training.of(Moved | Started)], "the new place")


def truncate_checkpoint(training: Training, rng: random.Random) -> None:
    """Truncate a file of the newest checkpoint and resume the run."""
    _spoil(training, rng, lambda data: data[: rng.randrange(len(data))])


def flip_a_bit(training: Training, rng: random.Random) -> None:
    """Flip one bit in a file of the newest checkpoint and resume the run."""

    def flip(data: bytes) -> bytes:
        spoilt = bytearray(data)
        spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
        return bytes(spoilt)

    _spoil(training, rng, flip)


def hang(training: Training, rng: random.Random) -> None:
    """Make the worker stop computing and sending (faults/hanging.py); it must be restarted as hung."""
    restarts = len(training.of(Restarted))
    training.wait_for_step(training.step + rng.randint(1, 2))
    (training.output / "hang").touch()
    training.wait(lambda: len(training.of(Restarted)) > restarts, "a restart after a hang")
    training.hangs += 1
    check_restart_cause(training, "hung")


def set_clock_back(training: Training, rng: random.Random) -> None:
    """Set the wall clock back by 1 to 48 hours, for this run's processes only."""
    training.wait_for_step(training.step + 1)
    offset = training.output.parent / "offset"
    offset.write_text(f"{int(offset.read_text()) - rng.randint(1, 48) * 3600}\n")
    training.wait_for_step(training.step + 2)


def fill_disk(training: Training, rng: random.Random) -> None:
    """Fill the disk: the run must end with a message and exit code 2; free space and resume the run.

    The run's folder is a tmpfs of its own.
    """
    training.wait_for_step(training.step + rng.randint(1, 3))
    ballast = training.output / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(b"\0" * MIB):
            pass
    said = training.said()
    assert training.process is not None
    if training.process.returncode != 2 or "disk" not in said:
        raise NotSurvived(f"a full disk ended with {training.process.returncode}:\n{said[-1000:]}")
    ballast.unlink()
    training.start()


def check_restart_cause(training: Training, cause: str) -> None:
    """Raise NotSurvived unless the last restart reports `cause`."""
    last = training.of(Restarted)[-1]
    if not (isinstance(last, Restarted) and last.cause == cause):
        raise NotSurvived(f"told as {last}, and it was {cause}")


def check_saved_on_stop(training: Training) -> None:
    """Raise NotSurvived unless the stopped run has a valid checkpoint of its last step."""
    assert training.run is not None
    newest, last = latest_good(training.run)[0], training.of(Stopped)[-1:]
    if not (newest and last and step_of(newest) == last[0].step == training.step):
        raise NotSurvived(f"stopped after step {training.step}, with {last} and {newest}")


def run_out_in_step(training: Training, rng: random.Random) -> None:
    """Limit the worker's memory (RLIMIT_DATA) until it runs out: the step is computed again with smaller micro-batches.

    The limit is set after training starts, because the planner would take an earlier limit into account.
    """
    training.wait(lambda: training.of(Started), "the first step")
    worker = training.wait_for_worker()
    resource.prlimit(worker.pid, resource.RLIMIT_DATA, (training.data_bytes, training.data_bytes))
    training.wait(lambda: training.of(Shrunk), "less at a time")


def kill_for_memory(training: Training, rng: random.Random) -> None:
    """Trigger the system's OOM killer by a cgroup whose limit the worker exceeds while it loads the model.

    The restart must report the cause `oom_killer`.
    """
    training.wait(lambda: training.run, "a run's folder")
    if training.step:  # this worker has loaded the model already, so a new one must load it
        training.wait_for_step(training.step + rng.randint(1, 2))
        training.wait_for_another(training.signal_worker(signal.SIGKILL))
    restarts, worker = len(training.of(Restarted)), training.wait_for_worker()
    with MemoryGroup() as group:
        group.limit(rng.randint(8, 32) * MIB)  # memory allocated before the move counts in the old group
        group.take(worker.pid)
        training.wait(lambda: len(training.of(Restarted)) > restarts, "an OOM kill")
    check_restart_cause(training, "oom_killer")


class MemoryGroup:
    """Context manager of a memory cgroup, version 1 or 2."""

    def __enter__(self) -> "MemoryGroup":
        self._old = (CGROUP / "memory").is_dir()
        self._folder = (CGROUP / "memory" if self._old else CGROUP) / f"lorafit-chaos-{os.getpid()}"
        self._folder.mkdir()
        return self

    def limit(self, size: int) -> None:
        """Set the limit of the group in bytes; swap is excluded."""
        names = (
            ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes") if self._old else ("memory.max", "memory.swap.max")
        )
        for name, value in zip(names, (size, size if self._old else 0), strict=True):
            if (self._folder / name).exists():
                (self._folder / name).write_text(f"{value}\n")

    def take(self, pid: int) -> None:
        """Move the process `pid` into the group."""
        (self._folder / "cgroup.procs").write_text(f"{pid}\n")

    def __exit__(self, *_error: object) -> None:
        for _attempt in range(50):
            try:
                return self._folder.rmdir()
            except OSError:
                time.sleep(0.1)


def missing(kind: str) -> str | None:
    """Return why the fault `kind` is impossible here, or None if it is possible."""
    if kind == "kill_for_memory":
        try:
            with MemoryGroup() as group:
                group.limit(1 << 30)
        except OSError as error:
            return f"no memory cgroup can be made: {error}"
    if kind == "fill_disk" and not (os.geteuid() == 0 and sys.platform == "linux" and shutil.which("mount")):
        return "a tmpfs needs root"
    if kind == "set_clock_back" and not (sys.platform == "linux" and shutil.which("cc")):
        return "a false clock needs a C compiler"
    if kind == "run_out_in_step" and not hasattr(resource, "prlimit"):
        return "this system limits no other process"
    return None


def fake_clock(folder: Path) -> dict[str, str]:
    """Build a preloadable library and return the environment in which it shifts the wall clock.

    The shift is the number of seconds in the file folder/offset.
    """
    library, offset = folder / "clock.so", folder / "offset"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(CLOCK)], check=True)
    offset.write_text("0\n")
    return {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(offset)}


def mount(folder: Path, size: int) -> None:
    """Mount a tmpfs of `size` bytes at `folder`."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)


def unmount(folder: Path) -> None:
    """Unmount `folder`; errors are ignored."""
    subprocess.run(["umount", "-l", str(folder)], check=False)


def _stop(training: Training, rng: random.Random, signals: list[signal.Signals], code: int) -> None:
    training.wait_for_step(training.step + rng.randint(1, 3))
    assert training.process is not None
    for number in signals:
        training.process.send_signal(number)
        time.sleep(0.02)
    _said_on_stop(training, signals, code)
    training.start()


def _said_on_stop(training: Training, signals: list[signal.Signals], code: int) -> str:
    """Wait for the end and return the output; raise NotSurvived unless `code` is the exit code."""
    said = training.said()
    assert training.process is not None
    if training.process.returncode == 0:
        raise FinishedTooEarly
    if training.process.returncode != code:
        raise NotSurvived(f"{signals} ended with {training.process.returncode}:\n{said[-1000:]}")
    return said


def _spoil(training: Training, rng: random.Random, change: Callable[[bytes], bytes]) -> None:
    training.wait_for_step(max(training.step + 1, 2 * SAVE_STEPS + 1))
    training.kill_group()
    run = training.run
    assert run is not None
    newest = sorted(path for path in run.checkpoints.iterdir() if path.name.startswith("step-"))[-1]
    files = sorted(path for path in newest.iterdir() if path.is_file() and path.stat().st_size)
    file = rng.choice(files)
    file.write_bytes(change(file.read_bytes()))
    training.start()


SAME_BYTES: dict[str, Fault] = {
    deed.__name__: deed
    for deed in (kill_any_time, kill_while_saving, kill_supervisor, kill_all, terminate, interrupt_twice, stop_for_a_while,
                 suspend_all, double_signal, rename_folder, truncate_checkpoint, flip_a_bit, hang, set_clock_back, fill_disk)
}  # fmt: skip
MEMORY_FAULTS: dict[str, Fault] = {deed.__name__: deed for deed in (run_out_in_step, kill_for_memory)}
KINDS = {**SAME_BYTES, **MEMORY_FAULTS}
