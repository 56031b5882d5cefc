"""Each way in which a worker exits gets its cause and its recovery, and restarts end once they do not help."""

import re

import pytest

from lorafit.distributed.collectives import RankLost
from lorafit.engines.base import OutOfMemory
from lorafit.errors import DiskError, EngineError
from lorafit.messages import set_language
from lorafit.supervisor.diagnosis import WorkerExit, cause_text, diagnose, is_fatal
from lorafit.supervisor.recovery import (
    MAX_DEATHS,
    MAX_DEATHS_OF_ONE_CAUSE,
    PastDeath,
    Recovery,
    advice,
    choose_recovery,
)

MLX = "RuntimeError: [METAL] Command buffer execution failed: "
CAUSES = [
    "oom_killer", "memory", "metal_memory", "watchdog", "banned", "command_buffer", "handles", "metal_bug", "cuda", "disk",
    "lost", "hung", "killed", "asked", "crashed", "aborted", "vanished",
]  # fmt: skip
EXITS = [
    (WorkerExit(-9, oom_kills=1), "oom_killer"),
    (WorkerExit(-9), "killed"),
    (WorkerExit(-9, ["torch.OutOfMemoryError: CUDA out of memory"]), "killed"),  # the traceback of an error that was handled
    (WorkerExit(-9, silent_seconds=400.0), "hung"),
    (WorkerExit(-6, ["libc++abi: terminating", MLX + "Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)"]), "metal_memory"),
    (WorkerExit(-6, [MLX + "Impacting Interactivity (0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)"]), "watchdog"),
    (WorkerExit(-6, [MLX + "Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout)"]), "watchdog"),
    (WorkerExit(-6, [MLX + "Caused GPU Hang Error (00000003:kIOGPUCommandBufferCallbackErrorHang)"]), "watchdog"),
    (WorkerExit(-6, [MLX + "Internal Error (0000000e:Internal Error)"]), "watchdog"),
    (WorkerExit(1, [MLX + "Ignored (for causing prior/excessive GPU errors) (00000004:kIOGPUCommandBufferCallbackErrorSubmissionsIgnored)"]), "banned"),
    (WorkerExit(-6, ["RuntimeError: [metal::malloc] Resource limit (499000) exceeded."]), "handles"),
    (WorkerExit(-6, ["LLVM ERROR: Failed to infer result type(s)"]), "metal_bug"),
    (WorkerExit(-6, ["/AppleInternal/Library/MPSCore.mm:124: failed assertion `no'"]), "metal_bug"),
    (WorkerExit(-9, fatal_line="Error: command buffer exited with error status."), "command_buffer"),
    (WorkerExit(-9, fatal_line="x (0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)"), "watchdog"),
    (WorkerExit(-6, ["terminate called after throwing an instance of 'std::bad_alloc'"]), "memory"),
    (WorkerExit(-6, ["RuntimeError: [malloc] Unable to allocate 4096 bytes."]), "memory"),
    (WorkerExit(1, ["OSError: [Errno 28] No space left on device"]), "disk"),
    (WorkerExit(1, ["CUDA error: unspecified launch failure"]), "cuda"),
    (WorkerExit(2, error=EngineError("The device failed.", found="CUDA error: device lost")), "cuda"),
    (WorkerExit(2, error=RankLost(1, 2, "it ended")), "lost"),
    (WorkerExit(2, error=RankLost(1, 2, "Out of memory on cuda.")), "memory"),
    (WorkerExit(2, error=RankLost(1, 2, "it was ended by signal SIGKILL"), oom_kills=1), "memory"),
    (WorkerExit(2, error=DiskError("The disk is full.")), "error"),
    (WorkerExit(2, error=OutOfMemory("Out of memory on a single sample", found="CUDA out of memory")), "error"),
    (WorkerExit(1, bug="MemoryError"), "memory"),
    (WorkerExit(1, bug="RuntimeError: CUDA error: unspecified launch failure"), "cuda"),
    (WorkerExit(1, bug="ZeroDivisionError: of our own"), "bug"),
    (WorkerExit(-11), "crashed"),
    (WorkerExit(-7), "crashed"),
    (WorkerExit(-6), "aborted"),
    (WorkerExit(-15), "asked"),
    (WorkerExit(3), "vanished"),
    (WorkerExit(0), "vanished"),
]  # fmt: skip


@pytest.mark.parametrize(("end", "cause"), EXITS, ids=lambda value: str(value)[:60])
def test_an_exit_has_its_cause_and_a_sentence(end: WorkerExit, cause: str) -> None:
    death = diagnose(end)
    assert death.cause == cause
    assert death.text
    assert "{" not in death.text


def test_the_line_that_shows_the_cause_is_kept() -> None:
    end = WorkerExit(-6, ["loading", "LLVM ERROR: Failed to infer result type(s)", "Abort trap: 6"])
    assert diagnose(end).evidence == "LLVM ERROR: Failed to infer result type(s)"
    assert diagnose(WorkerExit(-11, ["last words", ""])).evidence == "last words"


def test_every_cause_has_one_sentence_in_both_languages() -> None:
    for cause in CAUSES:
        set_language("en")
        english = cause_text(cause)
        assert english.endswith(".")
        assert not re.search(r"\. [A-Z]", english)
        set_language("zh")
        assert set(re.findall(r"{\w+}", cause_text(cause))) == set(re.findall(r"{\w+}", english))


@pytest.mark.parametrize(
    ("line", "fatal"),
    [
        ("Error: command buffer exited with error status.", True),
        ("   (0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)", True),
        ("UserWarning: this may run out of memory", False),
        ("", False),
    ],
)
def test_a_live_worker_is_killed_for_wrong_results_and_for_nothing_else(line: str, fatal: bool) -> None:
    assert is_fatal(line) == fatal


def recoveries(cause: str, count: int, system: str = "Linux") -> list[Recovery]:
    """Return the recoveries from `count` deaths of one `cause` without a checkpoint in between."""
    deaths: list[PastDeath] = []
    found = []
    relaxed = False
    for _i in range(count):
        deaths.append(PastDeath(cause, 10, 4))
        found.append(choose_recovery(deaths, system, relaxed))
        relaxed = relaxed or bool(found[-1].environ)
    return found


@pytest.mark.parametrize("cause", [c for c in CAUSES if c not in ("asked", "disk", "metal_bug")])
def test_restarts_end_where_they_do_not_help(cause: str) -> None:
    found = recoveries(cause, 12, "Darwin")
    restarts = [c.restart for c in found]
    assert restarts[0]
    assert not restarts[-1]
    assert restarts == sorted(restarts, reverse=True)
    assert sum(restarts) <= (MAX_DEATHS if any(c.shrink for c in found) else MAX_DEATHS_OF_ONE_CAUSE)
    assert found[-1].text == advice(cause)


@pytest.mark.parametrize("cause", ["oom_killer", "memory", "metal_memory"])
def test_lack_of_memory_leads_to_smaller_micro_batches(cause: str) -> None:
    assert all(c.shrink for c in recoveries(cause, MAX_DEATHS))


def test_metals_watchdog_is_first_relaxed_then_given_smaller_micro_batches() -> None:
    first, second, third = recoveries("watchdog", 3, "Darwin")
    assert (first.environ, first.shrink) == ({"AGX_RELAX_CDM_CTXSTORE_TIMEOUT": "1"}, False)
    assert (second.environ, second.shrink) == ({}, True)
    assert third.shrink
    assert "display" in recoveries("watchdog", 12, "Darwin")[-1].text


def test_crashes_kills_and_hangs_restart_with_the_same_plan() -> None:
    for cause in ("killed", "hung", "crashed", "cuda", "lost", "vanished"):
        assert not any(c.shrink for c in recoveries(cause, 4, "Linux")), cause


def test_on_macos_a_second_unexplained_kill_counts_as_out_of_memory() -> None:
    assert [c.shrink for c in recoveries("killed", 2, "Darwin")] == [False, True]


def test_a_process_that_ran_out_of_handles_is_recycled_before_it_runs_out_again() -> None:
    (found,) = recoveries("handles", 1)
    assert found.recycle_every == 3  # the process ran out after six steps


def test_a_checkpoint_between_two_deaths_resets_the_count() -> None:
    deaths = [PastDeath("killed", step + 3, step) for step in range(50)]
    assert choose_recovery(deaths, "Linux", False).restart


def test_a_cause_without_a_recovery_is_not_retried() -> None:
    for cause in ("error", "asked", "disk"):
        assert not choose_recovery([PastDeath(cause, 5, 4)], "Linux", False).restart
