"""SkyPilot: a task file for all other clouds, with spot instances, recovery, and several nodes through torchrun.

The bucket for checkpoints is mounted with a cache (MOUNT_CACHED), because a plain mount cannot rename a folder. A
checkpoint is completed by renaming its folder.
"""

import shlex
from pathlib import Path

import yaml

from lorafit.messages import _
from lorafit.paths import write_for_user
from lorafit.transfer.bundle import BundleInfo
from lorafit.transfer.cloud.base import CloudPackage, Platform

TASK = "task.yaml"
PORT = 29_500
# SkyPilot takes the cheapest available GPU of these; the quotes say on which of them the run does not fit.
GPUS = {"L4": 1, "A10G": 1, "L40S": 1, "A100": 1, "A100-80GB": 1, "H100": 1}

SETUP = """\
python3 -m pip --version > /dev/null 2>&1 || sudo apt-get install -y -q python3-pip
keep=$(mktemp)
python3 -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))' > "$keep" 2> /dev/null || true
python3 -m pip install --quiet -c "$keep" {install}
"""

RUN = """\
set -euo pipefail
output=/checkpoints/{name}
mkdir -p "$output"
# The first node unpacks; a run that is there already, after a recovery too, stays as it is.
if [[ "$SKYPILOT_NODE_RANK" == 0 ]]; then python3 -m lorafit fetch {bundle} --output_dir "$output"; fi
until run=$(ls -d "$output"/*/config.yaml 2> /dev/null | tail -n 1) && [[ -n $run ]]; do sleep 5; done
run=$(dirname "$run")
if [[ ! -e $run/final_model/adapter_config.json ]]; then
    train=(-m lorafit train --resume "$run" --output_dir "$output" {flags}$FLAGS)
    if [[ $((SKYPILOT_NUM_NODES * SKYPILOT_NUM_GPUS_PER_NODE)) -gt 1 ]]; then
        torchrun --nnodes "$SKYPILOT_NUM_NODES" --nproc_per_node "$SKYPILOT_NUM_GPUS_PER_NODE" \\
            --node_rank "$SKYPILOT_NODE_RANK" --master_addr "$(head -n 1 <<< "$SKYPILOT_NODE_IPS")" \\
            --master_port {port} "${{train[@]}}"
    else
        python3 "${{train[@]}}"
    fi
fi
if [[ "$SKYPILOT_NODE_RANK" == 0 ]]; then python3 -m lorafit bundle "$run" -o "$output/result.zip"; fi
"""


def check(facts: BundleInfo) -> None:
    """Accept every bundle."""


def write(parcel: CloudPackage, folder: Path) -> list[str]:
    """Write the task file into `folder` and return the next steps for the user. Raises DiskError."""
    path = folder / TASK
    note = _(
        "Several nodes: raise num_nodes; several GPUs per node: e.g. `L4: 8`. Training is then started by torchrun."
    )
    text = f"# {note}\n" + yaml.dump(task(parcel), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    write_for_user(path, text, "--output")
    go = f"cd {folder} && sky jobs launch {TASK}"
    return [
        _("Start: {command} (spot instances; resumes by itself after an interruption)").format(command=go),
        _("Gated model: add {flag}, with your access token in the environment variable HF_TOKEN.").format(
            flag="--secret HF_TOKEN"
        ),
        _("Results: {file} in bucket {bucket}").format(bucket=bucket(parcel), file=f"{parcel.name}/result.zip"),
    ]


def task(parcel: CloudPackage) -> dict[str, object]:
    """Return the content of the task file."""
    flags = "".join(f"{shlex.quote(flag)} " for flag in parcel.flags)
    names = {"name": parcel.name, "bundle": parcel.bundle, "port": PORT, "flags": flags}
    return {
        "name": f"lorafit-{parcel.name}",
        "workdir": ".",
        "num_nodes": 1,
        "resources": {
            "accelerators": GPUS,
            "use_spot": True,
            "disk_size": 100,
            "job_recovery": {"max_restarts_on_errors": 2},
        },
        "file_mounts": {"/checkpoints": {"name": bucket(parcel), "mode": "MOUNT_CACHED"}},
        "envs": {"FLAGS": "", "PYTHONUNBUFFERED": "1"},
        "setup": SETUP.format(install=parcel.install),
        "run": RUN.format(**names),
    }


def bucket(parcel: CloudPackage) -> str:
    """Return the bucket name: only lower-case letters, digits and hyphens."""
    return f"lorafit-{parcel.name}".lower().replace("_", "-").replace(".", "-")


class _Dumper(yaml.SafeDumper):
    """Dump multi-line strings as YAML literal blocks."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)

TARGET = Platform("SkyPilot", ("g6.xlarge", "g5.xlarge", "g6e.xlarge", "p3.2xlarge", "g4dn.xlarge"), check, write)
