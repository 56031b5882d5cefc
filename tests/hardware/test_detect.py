"""Detection of the machine, from the outputs of the tools and the files of described machines."""

from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from support.machine_outputs import (
    INTEL,
    M1,
    M2_MAX,
    P100,
    ROSETTA,
    RTX_3090,
    SPARK,
    T4,
    TWO,
    linux,
    linux_files,
    mac,
    prints,
)

from lorafit.errors import HardwareError
from lorafit.hardware.detect import Gpu, Machine, check_machine, detect_machine, installed_torch
from lorafit.units import GIB, MIB


def test_an_m1_has_one_mps_gpu_whose_limit_nobody_has_measured_yet() -> None:
    machine = mac(M1)
    assert machine.gpus == (Gpu("Apple M1", "mps", 8 * GIB, None),)
    assert (machine.chip, machine.cores, machine.memory_bytes) == ("Apple M1", 4, 8 * GIB)
    assert (machine.macos, machine.rosetta, machine.cpu_bf16) == ("15.6.1", False, False)
    check_machine(machine)


def test_available_memory_of_a_mac_is_its_free_speculative_and_inactive_pages() -> None:
    assert mac(M1).available_bytes == 112000 * 16384


def test_a_mac_without_vm_stat_falls_back_on_psutil() -> None:
    output = {cmd: text for cmd, text in M1.items() if cmd != "vm_stat"}
    assert 0 < mac(output).available_bytes <= psutil.virtual_memory().total


def test_an_m2_max_computes_bf16_on_its_cpu_too() -> None:
    machine = mac(M2_MAX)
    assert machine.cpu_bf16
    assert machine.memory_bytes == 32 * GIB


def test_an_intel_mac_is_told_to_go_to_the_cloud() -> None:
    machine = mac(INTEL, "x86_64")
    assert machine.gpus == ()
    with pytest.raises(HardwareError, match="Intel Macs") as error:
        check_machine(machine)
    assert "Colab" in str(error.value)
    assert "Kaggle" in str(error.value)


def test_a_python_under_rosetta_is_told_how_to_get_the_native_one() -> None:
    machine = mac(ROSETTA, "x86_64")
    assert machine.rosetta
    assert machine.gpus == ()
    with pytest.raises(HardwareError, match="Rosetta") as error:
        check_machine(machine)
    assert "brew install" in str(error.value)


def test_an_rtx_3090_is_found_with_its_free_memory_and_capability(tmp_path: Path) -> None:
    machine = linux(tmp_path, RTX_3090)
    assert machine.gpus == (Gpu("NVIDIA GeForce RTX 3090", "cuda", 24576 * MIB, 24000 * MIB, 8.6),)
    check_machine(machine)


def test_a_t4_has_capability_7_5(tmp_path: Path) -> None:
    assert linux(tmp_path, T4).gpus[0].compute_capability == 7.5


def test_an_old_driver_that_knows_no_capability_still_names_its_gpu(tmp_path: Path) -> None:
    gpu = linux(tmp_path, P100).gpus[0]
    assert (gpu.name, gpu.memory_bytes, gpu.compute_capability) == ("Tesla P100-PCIE-16GB", 16280 * MIB, None)


def test_a_gpu_that_shares_the_machines_memory_has_that_much(tmp_path: Path) -> None:
    gpu = linux(tmp_path, SPARK).gpus[0]
    assert (gpu.memory_bytes, gpu.available_bytes) == (32 * GIB, None)


@pytest.mark.parametrize(
    ("visible", "names"), [("1", ["A100"]), ("1,0", ["A100", "3090"]), ("GPU-dd", ["A100"]), ("", []), ("-1", [])]
)
def test_cuda_visible_devices_chooses_and_orders(tmp_path: Path, visible: str, names: list[str]) -> None:
    gpus = linux(tmp_path, TWO, {"CUDA_VISIBLE_DEVICES": visible}).gpus
    assert len(gpus) == len(names)
    assert all(name in gpu.name for name, gpu in zip(names, gpus, strict=True))


def test_a_machine_without_nvidia_smi_has_no_gpu(tmp_path: Path) -> None:
    machine = linux(tmp_path, {})
    assert machine.gpus == ()
    assert (machine.chip, machine.memory_bytes, machine.available_bytes) == ("AMD Ryzen 9", 32 * GIB, 16 * GIB)


def test_swap_is_not_memory(tmp_path: Path) -> None:
    assert linux(tmp_path, {}).available_bytes == 16 * GIB


@pytest.mark.parametrize(("flags", "has_bf16"), [("avx512f", False), ("avx512_bf16", True), ("amx_bf16", True)])
def test_hardware_bf16_is_read_from_the_processors_flags(tmp_path: Path, flags: str, has_bf16: bool) -> None:
    root = linux_files(tmp_path, flags=flags)
    assert detect_machine(prints({}), root, "Linux", "x86_64", {}).cpu_bf16 is has_bf16


CGROUP_2 = {
    "proc/self/cgroup": "0::/user.slice/job\n",
    "sys/fs/cgroup/user.slice/job/memory.max": "max\n",
    "sys/fs/cgroup/user.slice/job/memory.current": str(GIB),
    "sys/fs/cgroup/user.slice/memory.max": str(4 * GIB),
    "sys/fs/cgroup/user.slice/memory.current": str(3 * GIB),
    "sys/fs/cgroup/user.slice/memory.stat": f"anon 5\ninactive_file {GIB}\nactive_file 7\n",
}
CGROUP_1 = {
    "proc/self/cgroup": "11:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": str(6 * GIB),
    "sys/fs/cgroup/memory/memory.usage_in_bytes": str(2 * GIB),
    "sys/fs/cgroup/memory/memory.stat": f"cache 1\ntotal_inactive_file {GIB}\n",
}


@pytest.mark.parametrize(("files", "total", "available"), [(CGROUP_2, 4 * GIB, 2 * GIB), (CGROUP_1, 6 * GIB, 5 * GIB)])
def test_a_containers_limit_counts_and_its_file_cache_is_free(
    tmp_path: Path, files: dict[str, str], total: int, available: int
) -> None:
    machine = detect_machine(prints({}), linux_files(tmp_path, files), "Linux", "x86_64", {})
    assert (machine.memory_bytes, machine.available_bytes) == (total, available)


LIMITS = (
    "Limit   Soft Limit   Hard Limit   Units\nMax data size             {size}           unlimited            bytes\n"
)


def test_a_limit_on_data_counts_with_what_is_used_of_it(tmp_path: Path) -> None:
    files = {"proc/self/limits": LIMITS.format(size=3 * GIB), "proc/self/status": f"VmData:\t  {GIB // 1024} kB\n"}
    machine = detect_machine(prints({}), linux_files(tmp_path, files), "Linux", "x86_64", {})
    assert (machine.memory_bytes, machine.available_bytes) == (3 * GIB, 2 * GIB)


def test_no_limit_on_data_is_no_limit(tmp_path: Path) -> None:
    files = {"proc/self/limits": LIMITS.format(size="unlimited")}
    assert detect_machine(prints({}), linux_files(tmp_path, files), "Linux", "x86_64", {}).memory_bytes == 32 * GIB


def test_under_pressure_a_macs_inactive_pages_are_not_free() -> None:
    level = "sysctl -n kern.memorystatus_vm_pressure_level"
    relaxed, pressed = mac({**M1, level: "1"}), mac({**M1, level: "2"})
    assert not relaxed.pressed
    assert pressed.pressed
    assert pressed.available_bytes < relaxed.available_bytes


def test_this_machine_is_described_within_its_bounds() -> None:
    machine = detect_machine()
    assert 0 < machine.available_bytes <= machine.memory_bytes <= psutil.virtual_memory().total
    assert machine.cores >= 1


def test_the_installed_torch_is_read_without_importing_it() -> None:
    import torch

    version, cuda = installed_torch()
    assert version == torch.__version__
    assert cuda == torch.version.cuda


def test_json_gives_the_same_machine_back(tmp_path: Path) -> None:
    machine = replace(linux(tmp_path, TWO), macos="15.0", torch_cuda="12.8")
    assert Machine.from_json(machine.to_json()) == machine
