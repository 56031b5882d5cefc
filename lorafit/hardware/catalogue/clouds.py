"""Rented machines by name, with their GPUs, main memory and CPU cores."""

from dataclasses import dataclass

from lorafit.messages import noted


@dataclass(frozen=True)
class Instance:
    """A rented machine: `gpus` GPUs named `chip` with `gpu_gb` each, `memory_gb` main memory and `cores` CPU cores."""

    name: str
    chip: str
    gpu_gb: int
    gpus: int
    memory_gb: int
    cores: int
    source: str


AWS = noted("AWS EC2 instance types")
COLAB = noted("Google Colab, as observed in notebooks")
KAGGLE = noted("Kaggle's notebook documentation")
PAPERSPACE = noted("Paperspace machine types")

INSTANCES = [
    Instance("p3.2xlarge", "V100", 16, 1, 61, 8, AWS),
    Instance("p3.8xlarge", "V100", 16, 4, 244, 32, AWS),
    Instance("g4dn.xlarge", "T4", 16, 1, 16, 4, AWS),
    Instance("g4dn.2xlarge", "T4", 16, 1, 32, 8, AWS),
    Instance("g5.xlarge", "A10G", 24, 1, 16, 4, AWS),
    Instance("g5.2xlarge", "A10G", 24, 1, 32, 8, AWS),
    Instance("g5.12xlarge", "A10G", 24, 4, 192, 48, AWS),
    Instance("g6.xlarge", "L4", 24, 1, 16, 4, AWS),
    Instance("g6e.xlarge", "L40S", 48, 1, 32, 4, AWS),
    Instance("p4d.24xlarge", "A100", 40, 8, 1152, 96, AWS),
    Instance("p4de.24xlarge", "A100", 80, 8, 1152, 96, AWS),
    Instance("p5.48xlarge", "H100", 80, 8, 2048, 192, AWS),
    Instance("colab-t4", "T4", 16, 1, 12, 2, COLAB),
    Instance("colab-l4", "L4", 24, 1, 53, 12, COLAB),
    Instance("colab-a100", "A100", 40, 1, 83, 12, COLAB),
    Instance("kaggle-p100", "P100", 16, 1, 29, 4, KAGGLE),
    Instance("kaggle-t4x2", "T4", 16, 2, 29, 4, KAGGLE),
    Instance("paperspace-a4000", "RTX A4000", 16, 1, 45, 8, PAPERSPACE),
    Instance("paperspace-a100", "A100", 80, 1, 90, 12, PAPERSPACE),
]
