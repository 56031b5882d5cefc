"""Amazon SageMaker: a training job (CreateTrainingJob), the script that it runs, and a script that submits both.

Managed spot training copies /opt/ml/checkpoints to S3 during the job. After an interruption, SageMaker restores the
folder and restarts the job. Bucket, role and region are arguments of send.sh and are not stored here.
"""

import json
import shlex
from pathlib import Path
from typing import Any

from lorafit.messages import _
from lorafit.paths import write_for_user
from lorafit.transfer.bundle import BundleInfo
from lorafit.transfer.cloud.base import CloudPackage, Platform, Quote

JOB, SCRIPT, SEND = "training_job.json", "train.sh", "send.sh"
BUCKET, ROLE, REGION = "BUCKET", "ROLE", "REGION"  # placeholders that send.sh replaces
# AWS Deep Learning Containers; github.com/aws/deep-learning-containers lists the newest.
IMAGE = f"763104351884.dkr.ecr.{REGION}.amazonaws.com/pytorch-training:2.8.0-gpu-py312-cu129-ubuntu22.04-sagemaker"
DAY = 86_400  # seconds
DISK_GB = 100

TRAIN = """\
#!/usr/bin/env bash
# {about}
set -euo pipefail
code=${{SM_CHANNEL_CODE:-/opt/ml/input/data/code}}
checkpoints=${{CHECKPOINTS:-/opt/ml/checkpoints}}
model=${{SM_MODEL_DIR:-/opt/ml/model}}
python=${{PYTHON:-python3}}

keep=$(mktemp)
"$python" -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))' > "$keep"
"$python" -m pip install --quiet -c "$keep" {install}

# {spot}
"$python" -m lorafit train "$code/{bundle}" --output_dir "$checkpoints/{name}" {flags}${{FLAGS:-}} &
training=$!
trap 'kill -TERM $training 2> /dev/null || true' TERM
done=0
wait "$training" || done=$?
if kill -0 "$training" 2> /dev/null; then
    done=0
    wait "$training" || done=$?
fi
run=$(ls -d "$checkpoints/{name}"/*/config.yaml | tail -n 1 | xargs dirname)
if [[ $done -ne 0 && ! -e $run/final_model/adapter_config.json ]]; then exit "$done"; fi
mkdir -p "$model"
"$python" -m lorafit bundle "$run" -o "$model/result.zip"
"""

SENDING = """\
#!/usr/bin/env bash
# {usage} ./send.sh BUCKET ROLE_ARN REGION
set -euo pipefail
bucket=$1 role=$2 region=$3
here=$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)
aws s3 cp "$here" "s3://$bucket/lorafit/{name}/code" --recursive --exclude "*" \\
    --include {bundle} --include {script} --include "*.whl" --region "$region"
job=$(mktemp)
sed -e "s|BUCKET|$bucket|g" -e "s|ROLE|$role|g" -e "s|REGION|$region|g" "$here/{job}" > "$job"
aws sagemaker create-training-job --cli-input-json "file://$job" --region "$region"
echo "{finished} aws s3 cp s3://$bucket/lorafit/{name}/output . --recursive && lorafit fetch $(pwd)"
"""


def check(facts: BundleInfo) -> None:
    """Accept every bundle."""


def write(parcel: CloudPackage, folder: Path) -> list[str]:
    """Write job, train.sh and send.sh into `folder` and return the next steps for the user. Raises DiskError."""
    install = f'"$code/{parcel.install}"' if parcel.has_wheel else parcel.install
    flags = "".join(f"{shlex.quote(flag)} " for flag in parcel.flags)
    texts = {
        "about": _("The script of the training job. After an interruption it resumes from the newest checkpoint."),
        "spot": _("A spot instance sends SIGTERM two minutes before it ends; training then saves."),
        "usage": _("Upload and start, with the AWS command line logged in:"),
        "finished": _("When the job is finished:"),
    }
    names = {**texts, "name": parcel.name, "bundle": parcel.bundle, "script": SCRIPT, "job": JOB}
    write_for_user(folder / JOB, json.dumps(training_job(parcel), indent=1) + "\n", "--output")
    for file, text in ((SCRIPT, TRAIN), (SEND, SENDING)):
        write_for_user(folder / file, text.format(**names, install=install, flags=flags), "--output")
        (folder / file).chmod(0o755)
    return [
        _("Check {file}: the machine (ResourceConfig) and the time limit (StoppingCondition).").format(
            file=folder / JOB
        ),
        _("Upload and start: {command}").format(command=f"{folder / SEND} YOUR-BUCKET YOUR-ROLE-ARN YOUR-REGION"),
        _("Spot instances need a quota: *Service Quotas > SageMaker > ml.… for spot training job usage*."),
    ]


def training_job(parcel: CloudPackage) -> dict[str, Any]:
    """Return the CreateTrainingJob request. send.sh replaces the placeholders BUCKET, ROLE and REGION."""
    place = f"s3://{BUCKET}/lorafit/{parcel.name}"
    seconds = max_runtime_seconds(best_quote(parcel.quotes))
    return {
        "TrainingJobName": f"lorafit-{parcel.name}".replace("_", "-").replace(".", "-"),
        "AlgorithmSpecification": {
            "TrainingImage": IMAGE,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["bash", f"/opt/ml/input/data/code/{SCRIPT}"],
        },
        "RoleArn": ROLE,
        "InputDataConfig": [
            {
                "ChannelName": "code",
                "DataSource": {
                    "S3DataSource": {
                        "S3DataType": "S3Prefix",
                        "S3Uri": f"{place}/code",
                        "S3DataDistributionType": "FullyReplicated",
                    }
                },
            }
        ],
        "OutputDataConfig": {"S3OutputPath": f"{place}/output"},
        "CheckpointConfig": {"S3Uri": f"{place}/checkpoints", "LocalPath": "/opt/ml/checkpoints"},
        "ResourceConfig": {
            "InstanceType": instance_type(best_quote(parcel.quotes)),
            "InstanceCount": 1,
            "VolumeSizeInGB": DISK_GB,
        },
        "EnableManagedSpotTraining": True,
        "StoppingCondition": {"MaxRuntimeInSeconds": seconds, "MaxWaitTimeInSeconds": 2 * seconds},
        "Environment": {"PYTHONUNBUFFERED": "1"},
    }


def best_quote(offers: list[Quote]) -> Quote | None:
    """Return the cheapest machine that fits; without any price the fastest that fits; None if none fits."""
    fitting = [offer for offer in offers if offer.fits]
    priced = [offer for offer in fitting if offer.dollars is not None]
    if priced:
        return min(priced, key=lambda offer: offer.dollars or 0.0)
    return min(fitting, key=lambda offer: offer.seconds or 0.0, default=None)


def instance_type(offer: Quote | None) -> str:
    """Return the SageMaker instance type of `offer`, or of the first machine in MACHINES for None."""
    return f"ml.{offer.machine if offer else MACHINES[0]}"


def max_runtime_seconds(offer: Quote | None) -> int:
    """Return the time limit: three times the upper estimate plus one hour for startup, at most five days.

    Without an estimate, the limit is one day.
    """
    if offer is None or offer.high is None:
        return DAY
    return min(int(3 * offer.high) + 3600, 5 * DAY)


MACHINES = ("g5.xlarge", "g4dn.xlarge", "g6.xlarge", "g6e.xlarge", "p3.2xlarge")
TARGET = Platform("Amazon SageMaker", MACHINES, check, write)
