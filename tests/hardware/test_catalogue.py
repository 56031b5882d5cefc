"""The catalog of machines: drivers' names of chips, look-alikes, sizes, and machines described by their figures."""

import json
import re
from dataclasses import replace

import pytest
from support.machines import CPU, cuda

from lorafit.cli.app import main
from lorafit.errors import HardwareError
from lorafit.hardware.catalogue.catalogue import read_catalogue
from lorafit.hardware.catalogue.chip import Chip
from lorafit.hardware.catalogue.find import CHIPS, chip_in, chip_of, machine_named
from lorafit.hardware.detect import Gpu, Machine
from lorafit.planner.device_precision import old_gpu
from lorafit.planner.memory import Layout
from lorafit.planner.memory_budget import available_bytes
from lorafit.planner.throughput import DeviceRates, rates
from lorafit.units import GIB

Output = pytest.CaptureFixture[str]

REPORTED = {
    "NVIDIA RTX A6000": "RTX A6000",
    "NVIDIA RTX A2000 12GB": "RTX A2000",
    "NVIDIA RTX A5500": "RTX A5500",
    "NVIDIA RTX 6000 Ada Generation": "RTX 6000 Ada",
    "NVIDIA RTX 5000 Ada Generation": "RTX 5000 Ada",
    "NVIDIA RTX 4000 Ada Generation": "RTX 4000 Ada",
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": "RTX PRO 6000",
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition": "RTX PRO 6000 Max-Q",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "RTX PRO 6000 Server",
    "NVIDIA RTX PRO 4500 Blackwell": "RTX PRO 4500",
    "Quadro RTX 5000": "Quadro RTX 5000",
    "Quadro RTX 8000": "Quadro RTX 8000",
    "NVIDIA TITAN RTX": "TITAN RTX",
    "NVIDIA GeForce GTX 1080 Ti": "GTX 1080 Ti",
    "NVIDIA GeForce GTX 1660 SUPER": "GTX 1660 Super",
    "NVIDIA GeForce RTX 2080 Ti": "RTX 2080 Ti",
    "NVIDIA GeForce RTX 3060": "RTX 3060",
    "NVIDIA GeForce RTX 3060 Laptop GPU": "RTX 3060 Laptop",
    "NVIDIA GeForce RTX 4070 Laptop GPU": "RTX 4070 Laptop",
    "NVIDIA GeForce RTX 4070 Ti SUPER": "RTX 4070 Ti Super",
    "NVIDIA GeForce RTX 4090": "RTX 4090",
    "NVIDIA GeForce RTX 4090 D": "RTX 4090 D",
    "NVIDIA GeForce RTX 5070 Ti Laptop GPU": "RTX 5070 Ti Laptop",
    "Tesla T4": "T4",
    "NVIDIA T4G": "T4G",
    "NVIDIA A2": "A2",
    "NVIDIA A10": "A10",
    "NVIDIA A10G": "A10G",
    "NVIDIA A16": "A16",
    "NVIDIA A30": "A30",
    "NVIDIA A40": "A40",
    "NVIDIA A100-SXM4-40GB": "A100",
    "NVIDIA A100-PCIE-40GB": "A100 PCIe",
    "NVIDIA A100 80GB PCIe": "A100 PCIe",
    "NVIDIA A800-SXM4-80GB": "A800",
    "NVIDIA A800 40GB Active": "A800",
    "NVIDIA L4": "L4",
    "NVIDIA L20": "L20",
    "NVIDIA L40": "L40",
    "NVIDIA L40S": "L40S",
    "NVIDIA H20": "H20",
    "NVIDIA H20-3e": "H20-3e",
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA H100 PCIe": "H100 PCIe",
    "NVIDIA H100 NVL": "H100 NVL",
    "NVIDIA H800": "H800",
    "NVIDIA H200": "H200",
    "NVIDIA GH200 480GB": "GH200",
    "NVIDIA B200": "B200",
    "NVIDIA B300 SXM6 AC": "B300",
    "Tesla P40": "P40",
    "Tesla V100-SXM2-32GB": "V100",
    "Tesla V100-PCIE-16GB": "V100 PCIe",
    "Tesla V100S-PCIE-32GB": "V100S",
    "Orin (nvgpu)": "Jetson AGX Orin",
    "NVIDIA Thor": "Jetson Thor",
    "NVIDIA GB10": "GB10",
    "Apple M5 Max": "Apple M5 Max",
    "Apple M1 (Virtual)": "Apple M1",
}
# Devices that are not in the catalog, and whose names resemble those of chips in it.
UNKNOWN = [
    "NVIDIA RTX A600", "NVIDIA RTX A400 4GB", "NVIDIA T400 4GB", "NVIDIA RTX A1000", "Quadro P1000", "Quadro P4000",
    "NVIDIA RTX A2000 Laptop GPU", "Quadro RTX 5000 with Max-Q Design", "NVIDIA RTX 6000", "NVIDIA A10-24Q",
    "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA GeForce RTX 3080 Ti x", "NVIDIA GeForce GTX 1060 6GB",
]  # fmt: skip
BF16 = Layout("cuda", "bf16", "none", "adamw", 8, "all-linear", 2048, 2048, 0, 64)


@pytest.mark.parametrize(("reported", "chip"), REPORTED.items())
def test_a_chip_is_known_by_its_drivers_name(reported: str, chip: str) -> None:
    assert getattr(chip_of(reported), "name", None) == chip


@pytest.mark.parametrize("reported", UNKNOWN)
def test_a_device_that_only_resembles_a_chip_is_unknown(reported: str) -> None:
    assert chip_of(reported) is None


@pytest.mark.parametrize(
    ("asked", "chip", "gib"),
    [
        ("A6000", "RTX A6000", 48), ("6000 Ada", "RTX 6000 Ada", 48), ("RTX PRO 6000 Max-Q", "RTX PRO 6000 Max-Q", 96),
        ("4090D", "RTX 4090 D", 24), ("4090 48GB", "RTX 4090", 48), ("2080 Ti 22GB", "RTX 2080 Ti", 22),
        ("RTX 3060 12GB", "RTX 3060", 12), ("RTX 4060 laptop", "RTX 4060 Laptop", 8), ("GTX 1660 Ti", "GTX 1660 Ti", 6),
        ("Jetson Orin Nano 8GB", "Jetson Orin Nano", 8), ("DGX Spark GB10", "GB10", 128), ("H100 PCIe 80GB", "H100 PCIe", 80),
    ],
)  # fmt: skip
def test_people_name_cards_in_short(asked: str, chip: str, gib: int) -> None:
    gpu = machine_named(asked).gpus[0]
    assert (gpu.name, gpu.memory_bytes) == (chip, gib * GIB)


@pytest.mark.parametrize(
    ("asked", "count", "chip", "gib"),
    [("2x4090", 2, "RTX 4090", 24), ("3090 x2", 2, "RTX 3090", 24), ("4090 24g*8", 8, "RTX 4090", 24),
     ("8卡A100", 8, "A100", 40), ("H100 SXM 80GB x 8", 8, "H100", 80), ("M2 Ultra 192", 1, "Apple M2 Ultra", 192),
     ("MacBook Pro 14 M3 Pro 18GB", 1, "Apple M3 Pro", 18), ("M1 Pro 10 core 16GB", 1, "Apple M1 Pro", 16)],
)  # fmt: skip
def test_a_name_may_give_a_count_a_bare_size_and_cores(asked: str, count: int, chip: str, gib: int) -> None:
    gpus = machine_named(asked).gpus
    assert [(gpu.name, gpu.memory_bytes) for gpu in gpus] == [(chip, gib * GIB)] * count


@pytest.mark.parametrize("asked", ["0x4090", "2x M1", "2x GB10", "i7-12700 32GB"])
def test_a_machine_that_cannot_be_is_refused_with_the_forms_that_work(asked: str) -> None:
    with pytest.raises(HardwareError) as error:
        machine_named(asked)
    assert "16 cores 64GB" in str(error.value.fix)


@pytest.mark.parametrize(
    ("name", "gib", "bandwidth"),
    [("RTX 3060", 8, 240), ("RTX 3060", 11.8, 360), ("NVIDIA A100-SXM4", 39.4, 1555), ("NVIDIA A100-SXM4", 79.2, 2039),
     ("Orin (nvgpu)", 7.4, 102.4), ("Orin (nvgpu)", 61.4, 204.8)],
)  # fmt: skip
def test_versions_with_one_name_are_told_apart_by_their_memory(name: str, gib: float, bandwidth: float) -> None:
    chip = chip_in(Gpu(name, "cuda", int(gib * GIB)))
    assert chip is not None
    assert chip.gigabytes_per_second == bandwidth


def test_an_orin_with_8_gb_is_taken_for_the_slower_module() -> None:
    assert getattr(chip_of("Orin (nvgpu)", 8 * GIB), "name", None) == "Jetson Orin Nano"


def test_each_chip_of_the_catalog_is_found_by_its_own_name_and_size() -> None:
    assert [chip_of(chip.name, chip.memory_gb[0] * GIB) for chip in CHIPS] == CHIPS


def named(name: str) -> Chip:
    found = chip_of(name)
    assert found is not None
    return found


def test_geforce_cards_compute_half_of_what_workstation_cards_with_the_same_chip_do() -> None:
    share = {name: named(name).teraflops["bf16"] / named(name).teraflops["fp32"] for name in ("RTX A6000", "RTX 3090")}
    assert share == {"RTX A6000": pytest.approx(4, rel=0.01), "RTX 3090": pytest.approx(2, rel=0.01)}


@pytest.mark.parametrize("name", ["GTX 1660 Ti", "GTX 1080 Ti", "P40"])
def test_a_card_without_tensor_cores_computes_16_bits_as_fast_as_32(name: str) -> None:
    machine = machine_named(name)
    layouts = [replace(BF16, precision=precision) for precision in ("fp16", "fp32")]
    assert len({rates(machine, layout).flops for layout in layouts}) == 1


@pytest.mark.parametrize(("name", "old"), [("GTX 1080 Ti", True), ("P40", True), ("GTX 1660", False), ("A6000", False)])
def test_a_card_before_turing_needs_an_older_pytorch(name: str, old: bool) -> None:
    assert bool(old_gpu(machine_named(name), "cuda")) == old


def test_a_gpu_without_memory_of_its_own_gets_what_the_machine_has_left() -> None:
    spark = machine_named("GB10")
    assert spark.memory_bytes == spark.gpus[0].memory_bytes == 128 * GIB
    assert available_bytes(spark, "cuda") == spark.available_bytes
    detected = cuda(Gpu("NVIDIA GB10", "cuda", CPU.memory_bytes, None, 12.1))
    assert available_bytes(detected, "cuda") == CPU.available_bytes


def test_every_share_of_a_rate_that_is_assumed_is_called_an_estimate() -> None:
    assert all("estimate" in chip.source for chip in CHIPS if chip.sustained != 1)


def rates_on(machine: Machine, **changes: object) -> DeviceRates:
    return rates(machine, replace(BF16, **changes))  # type: ignore[arg-type]


def test_a_described_gpu_computes_as_the_chip_with_the_same_figures() -> None:
    described, card = machine_named("24GB 165.2TFLOPS 1008GB/s sm89"), machine_named("RTX 4090")
    assert rates_on(described) == rates_on(card)
    assert described.gpus[0].memory_bytes == card.gpus[0].memory_bytes
    assert described.gpus[0].compute_capability == 8.9
    assert Machine.from_json(described.to_json()) == described


@pytest.mark.parametrize(
    "text", ["48GB 155TFLOPS 768GB/s", "768 GB/s, 155 tflops, 48 GB", "155 TFLOP/s + 0.768 TB/s + 48GiB", "cuda 768gbps 48gb 155TFLOPS"]
)  # fmt: skip
def test_the_figures_of_a_described_gpu_stand_in_any_order(text: str) -> None:
    assert machine_named(text) == machine_named("48GB 155TFLOPS 768GB/s")


def test_a_description_can_name_count_main_memory_and_device() -> None:
    pair = machine_named("2x24GB 71TFLOPS 936GB/s 64GB RAM")
    assert (len(pair.gpus), pair.memory_bytes) == (2, 64 * GIB)
    assert len(machine_named("24GB 71TFLOPS 936GB/s x4").gpus) == 4
    mac = machine_named("mps 64GB 14TFLOPS 400GB/s")
    assert (mac.system, mac.gpus[0].kind, mac.memory_bytes) == ("Darwin", "mps", 64 * GIB)
    assert rates_on(mac, device="mps", precision="fp32").flops == rates_on(mac, device="mps").flops


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("24GB 165TFLOPS", "bandwidth"), ("165TFLOPS 1008GB/s", "GPU memory"), ("24GB 1008GB/s", "matmul rate"),
        ("0GB 165TFLOPS 1008GB/s", "0 is not between 1 and 1024"), ("24GB 165TFLOPS 9999999GB/s", "9999999"),
        ("24GB 0TFLOPS 1008GB/s", "matmul rate"), ("24GB 165TFLOPS 1008GB/s turbo", "turbo"),
        ("24GB 48GB 165TFLOPS 1008GB/s", "twice"), ("-24GB 165TFLOPS 1008GB/s", "not understood"),
        ("0x 24GB 165TFLOPS 1008GB/s", "number of GPUs"), ("mps 2x 64GB 14TFLOPS 400GB/s", "one GPU"),
        ("24GB 165TFLOPS 1008GB/s sm999", "compute capability"),
    ],
)  # fmt: skip
def test_a_description_that_cannot_be_used_is_refused_with_its_form(text: str, told: str) -> None:
    with pytest.raises(HardwareError, match=re.escape(told)) as caught:
        machine_named(text)
    assert (caught.value.found, caught.value.where) == (text, "--machine")
    assert "24GB 165TFLOPS 1008GB/s" in str(caught.value.fix)


PLAN = ["plan", "--model_name", "meta-llama/Llama-3.1-8B-Instruct", "--dataset_name", "Skepsun/lawyer_llama_data"]
OFFLINE = ["--hf_endpoint", "http://127.0.0.1:9"]


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", ["24GB 165TFLOPS 1008GB/s", "RTX A6000", "2x 80GB 312TFLOPS 2TB/s 256GB RAM"])
def test_the_command_plans_for_a_machine_in_both_languages(
    name: str, language: str, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAFIT_LANG", language)
    assert main([*PLAN, *OFFLINE, "--machine", name]) == 0
    shown = "".join(capsys.readouterr().out.split())  # a terminal wraps
    assert main([*PLAN, *OFFLINE, "--machine", name, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert "".join(plan["machine"]["gpus"][0]["name"].split()) in shown
    assert plan["plan"]["device"] == "cuda"
    assert plan["estimate"]["source"] == "catalogue"


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", ["24GB 165TFLOPS", "RTX A6001"])
def test_the_command_refuses_a_machine_in_both_languages(
    name: str, language: str, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAFIT_LANG", language)
    assert main([*PLAN, *OFFLINE, "--machine", name]) == 2
    told = capsys.readouterr().err
    assert name in told
    assert "24GB 165TFLOPS 1008GB/s" in told


def test_the_cores_of_a_named_processor_are_shown(capsys: Output) -> None:
    assert main([*PLAN, *OFFLINE, "--machine", "EPYC 8 cores 64GB"]) == 0
    assert "cores: 8" in capsys.readouterr().out
    assert main([*PLAN, *OFFLINE, "--machine", "RTX A6000"]) == 0
    assert "cores:" not in capsys.readouterr().out, "the number is assumed"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_list_has_a_line_for_each_chip(language: str, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAFIT_LANG", language)
    assert main(["machines"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for chip in read_catalogue().chips:
        assert [
            line for line in lines if line.startswith(f"{chip.name}  ") and f" {chip.gigabytes_per_second:g} " in line
        ]
