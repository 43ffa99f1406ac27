"""Manifests and scripts of `cloud/`: as far as a machine without a cloud can test them.

YAML against schemas of the parts that are used (written from the documentation of JobSet and
SkyPilot; nothing else is allowed), shell scripts by `sh -n`, shellcheck where it is installed, and
their dry runs, the command lines in them by the programs that they start.
"""

import itertools
import os
import pathlib
import re
import subprocess
import sys

import jsonschema
import pytest
import yaml

from launch import places
from launch.jobs import JOBS
from launch.options import take_options
from tests.architecture.sources import ROOT

CLOUD = ROOT / "cloud"
SCRIPTS = ("tpu_vm.sh", "slurm.sbatch")
JOBSET_VALUES = {
    "NAME": "one",
    "IMAGE": "registry/alignax:1",
    "SERVICE_ACCOUNT": "trainer",
    "ACCELERATOR": "tpu-v5-lite-podslice",
    "TOPOLOGY": "4x8",
    "CHIPS_PER_HOST": "4",
    "SLICES": "2",
    "JOB": "rec.pretrain",
    "PRESET": "onerec_1b",
    "RUN_DIR": "gs://bucket/runs/one",
    "RESTARTS": "10",
}
TPU_VALUES = {
    "PROJECT": "project",
    "ZONE": "us-west4-a",
    "NAME": "one",
    "ACCELERATOR_TYPE": "v5litepod-16",
    "RUNTIME_VERSION": "v2-alpha-tpuv5-lite",
    "RUN_DIR": "gs://bucket/runs/one",
}
SLURM_VALUES = {
    "JOB": "rec.pretrain",
    "PRESET": "onerec_1b",
    "RUN_DIR": "/shared/run",
    "VENV": "/shared/venv",
}


def exactly(properties, *optional):
    """A JSON schema: these properties, all but the optional ones required, and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 1}
TEXTS = {"type": "object", "additionalProperties": TEXT}
POD = exactly(
    {
        "serviceAccountName": TEXT,
        "restartPolicy": {"enum": ["Never", "OnFailure"]},
        "terminationGracePeriodSeconds": COUNT,
        "nodeSelector": TEXTS,
        "containers": {
            "type": "array",
            "minItems": 1,
            "items": exactly(
                {
                    "name": TEXT,
                    "image": TEXT,
                    "args": {"type": "array", "items": TEXT},
                    "ports": {"type": "array", "items": exactly({"containerPort": COUNT})},
                    "resources": exactly({"limits": exactly({"google.com/tpu": COUNT})}),
                }
            ),
        },
    }
)
JOB = exactly(
    {
        "parallelism": COUNT,
        "completions": COUNT,
        "backoffLimit": {"const": 0},
        "template": exactly({"spec": POD}),
    }
)
JOBSET = exactly(
    {
        "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
        "kind": {"const": "JobSet"},
        "metadata": exactly(
            {"name": {"type": "string", "pattern": "^[a-z0-9-]+$"}, "annotations": TEXTS}
        ),
        "spec": exactly(
            {
                "failurePolicy": exactly({"maxRestarts": {"type": "integer", "minimum": 0}}),
                "replicatedJobs": {
                    "type": "array",
                    "minItems": 1,
                    "items": exactly(
                        {"name": TEXT, "replicas": COUNT, "template": exactly({"spec": JOB})}
                    ),
                },
            }
        ),
    }
)
SKYPILOT = exactly(
    {
        "name": TEXT,
        "num_nodes": COUNT,
        "workdir": TEXT,
        "resources": exactly(
            {
                "infra": TEXT,
                "accelerators": TEXT,
                "accelerator_args": exactly(
                    {"tpu_vm": {"type": "boolean"}, "runtime_version": TEXT}
                ),
                "use_spot": {"type": "boolean"},
                "job_recovery": exactly(
                    {"strategy": TEXT, "recover_on_exit_codes": {"type": "array", "items": COUNT}}
                ),
            },
            "infra",
            "accelerator_args",
            "job_recovery",
        ),
        "envs": {"type": "object", "additionalProperties": {"type": "null"}},
        "setup": TEXT,
        "run": TEXT,
    }
)


def environment(values):
    """Only these variables, and what a shell needs."""
    return {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | values


def render(values):
    command = [sys.executable, "cloud/render.py", "cloud/gke_jobset.yaml"]
    return subprocess.run(
        command, cwd=ROOT, env=environment(values), capture_output=True, text=True
    )


def shell(script, *words, values):
    command = ["sh", f"cloud/{script}", *words]
    return subprocess.run(
        command, cwd=ROOT, env=environment(values), capture_output=True, text=True
    )


def job_of(words):
    """The job and preset of a command line of ours, parsed by the program that it starts."""
    module = words[words.index("-m") + 1] if "-m" in words else words[0]
    rest = words[words.index(module) + 1 :]
    options, rest = take_options(rest, several=True)
    assert module in ("launch.tpu_pod", "launch.gpu_cluster")
    assert rest[0] in JOBS and rest[1] == "--preset" and rest[2] in JOBS[rest[0]].presets
    assert rest[3] == "--run-dir" and rest[4]
    return module, options


def test_jobset():
    done = render(JOBSET_VALUES)
    assert done.returncode == 0, done.stderr
    manifest = yaml.safe_load(done.stdout)
    jsonschema.validate(manifest, JOBSET)
    replicated = manifest["spec"]["replicatedJobs"][0]
    job = replicated["template"]["spec"]
    assert (replicated["replicas"], job["parallelism"], job["completions"]) == (2, 8, 8)
    pod = job["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x8"
    assert job_of(pod["containers"][0]["args"])[0] == "launch.tpu_pod"


@pytest.mark.parametrize("name", JOBSET_VALUES)
def test_jobset_without_a_value_is_an_error_that_names_it(name):
    for values in (
        {**JOBSET_VALUES, name: ""},
        {k: v for k, v in JOBSET_VALUES.items() if k != name},
    ):
        done = render(values)
        assert done.returncode == 2 and done.stdout == ""
        assert name in done.stderr or (name == "CHIPS_PER_HOST" and "HOSTS" in done.stderr)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"TOPOLOGY": "16"}, "TOPOLOGY is '16'; it must be as 4x4 or 2x2x4"),
        ({"TOPOLOGY": "3x3"}, "TOPOLOGY 3x3 has 9 chips, no multiple of 4"),
        ({"CHIPS_PER_HOST": "5"}, "CHIPS_PER_HOST is '5'; it must be 1, 4 or 8"),
        ({"NAME": 'a"b'}, "NAME is 'a\"b'; no quotes, backslashes or line breaks"),
    ],
)
def test_jobset_with_a_value_that_cannot_be(change, message):
    done = render(JOBSET_VALUES | change)
    assert (done.returncode, done.stdout) == (2, "") and message in done.stderr


@pytest.mark.parametrize("name", ["skypilot_gpu.yaml", "skypilot_tpu.yaml"])
def test_skypilot(name):
    task = yaml.safe_load((CLOUD / name).read_text())
    jsonschema.validate(task, SKYPILOT)
    assert set(task["envs"]) == {"JOB", "PRESET", "RUN_DIR"}
    run = task["run"]
    used = set(re.findall(r"\$([A-Z_]+)", run))
    given = {"SKYPILOT_NODE_IPS", "SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK"}
    assert set(task["envs"]) <= used <= set(task["envs"]) | given
    values = {
        "JOB": "rec.pretrain",
        "PRESET": "onerec_1b",
        "RUN_DIR": "gs://bucket/runs/one",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
    }
    said = run.replace("exec .venv/bin/python", "printf '%s\\n' python")
    done = subprocess.run(
        ["sh", "-c", said], env=environment(values), capture_output=True, text=True, check=True
    )
    module, options = job_of(done.stdout.split("\n")[:-1])
    if name == "skypilot_gpu.yaml":
        place = places.on_gpus(options, {})
        assert module == "launch.gpu_cluster"
        assert (place.coordinator, place.num_processes) == ("10.0.0.1:61440", 2)
        assert place.process_id == 1
    for part in ("setup", "run"):
        subprocess.run(["sh", "-n", "-c", task[part]], check=True)
    extra = re.search(r"'\.\[(\w+),gs", task["setup"])
    assert extra and f'"{extra[1]}"' in (ROOT / "setup.py").read_text()


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_shell(script):
    subprocess.run(["sh", "-n", str(CLOUD / script)], check=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_by_shellcheck(script):
    shellcheck = pathlib.Path(sys.executable).with_name("shellcheck")  # of the extra `dev`
    done = subprocess.run([shellcheck, str(CLOUD / script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


TPU_STEPS = {
    ("create",): "tpu-vm create one --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite",
    ("install",): "tpu-vm scp",
    ("run", "rec.pretrain", "--preset", "onerec_1b"): "tpu-vm ssh one --worker=all",
    ("logs",): "tpu-vm ssh one --worker=0",
    ("status",): "tpu-vm describe one",
    ("stop",): "kill -TERM",
    ("fetch", "runs/here"): "gcloud storage rsync --recursive gs://bucket/runs/one runs/here",
    ("delete",): "tpu-vm delete one --quiet",
}
NEEDED = {
    "create": ("PROJECT", "ZONE", "NAME", "ACCELERATOR_TYPE", "RUNTIME_VERSION"),
    "run": ("PROJECT", "ZONE", "NAME", "RUN_DIR"),
    "fetch": ("RUN_DIR",),
}


@pytest.mark.parametrize("words", TPU_STEPS)
def test_tpu_vm_dry_run(words):
    done = shell("tpu_vm.sh", "--dry-run", *words, values=TPU_VALUES)
    assert done.returncode == 0, done.stderr
    assert TPU_STEPS[words] in done.stdout
    if words[0] == "run":
        command = re.search(r"--command=(.*?) > ", done.stdout)
        assert command and job_of(command[1].split()[3:])[0] == "launch.tpu_pod"
    if "tpu-vm" in done.stdout:
        assert "--project=project --zone=us-west4-a" in done.stdout
    if words[0] != "fetch":
        unset = {k: v for k, v in TPU_VALUES.items() if k != "ZONE"}
        refused = shell("tpu_vm.sh", "--dry-run", *words, values=unset)
        assert refused.returncode == 2 and "ZONE" in refused.stderr and not refused.stdout


@pytest.mark.parametrize(
    ("step", "name"), [(step, name) for step, names in NEEDED.items() for name in names]
)
def test_tpu_vm_without_a_variable(step, name):
    words = next(words for words in TPU_STEPS if words[0] == step)
    values = {key: value for key, value in TPU_VALUES.items() if key != name}
    done = shell("tpu_vm.sh", "--dry-run", *words, values=values)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{step} needs the variable {name}" in done.stderr


@pytest.mark.parametrize(
    ("words", "change", "message"),
    [
        (("create",), {"SPOT": "yes"}, "SPOT is 'yes'; it must be 0 or 1"),
        (("run", "rec.pretrain"), {"RUN_DIR": "runs/a"}, "RUN_DIR is 'runs/a'; it must be gs://"),
        (("run",), {}, "run needs a job"),
        (("fetch",), {}, "fetch needs the folder"),
        (("creat",), {}, "the step is 'creat'; it must be create, install"),
        ((), {}, "the step is ''; it must be create"),
    ],
)
def test_tpu_vm_errors(words, change, message):
    done = shell("tpu_vm.sh", "--dry-run", *words, values=TPU_VALUES | change)
    assert (done.returncode, done.stdout) == (2, "") and message in done.stderr


def test_tpu_vm_spot_and_words_with_spaces():
    done = shell("tpu_vm.sh", "--dry-run", "create", values=TPU_VALUES | {"SPOT": "1"})
    assert "--spot --project" in done.stdout
    words = ("run", "rec.pretrain", "--preset", "it's a b")
    done = shell("tpu_vm.sh", "--dry-run", *words, values=TPU_VALUES)
    heard = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {done.stdout}"], capture_output=True, text=True, check=True
    )
    assert "--preset 'it'\\''s a b'" in heard.stdout


def test_slurm_dry_run():
    done = shell("slurm.sbatch", values=SLURM_VALUES | {"DRY_RUN": "1", "FLAGS": "--seed 3"})
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert words[:3] == ["srun", "--kill-on-bad-exit=1", "/shared/venv/bin/python"]
    assert words[-2:] == ["--seed", "3"]
    module, options = job_of(words)
    assert module == "launch.gpu_cluster"
    tasks = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "gpu[03-04]",
        "SLURM_NTASKS": "16",
        "SLURM_PROCID": "9",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
        "SLURM_NODEID": "1",
    }
    place = places.on_gpus(options, tasks)
    assert (place.num_processes, place.process_id, place.local_devices) == (16, 9, (1,))
    assert place.coordinator.startswith("gpu03:")


@pytest.mark.parametrize("name", SLURM_VALUES)
def test_slurm_without_a_variable(name):
    values = {key: value for key, value in SLURM_VALUES.items() if key != name}
    done = shell("slurm.sbatch", values=values | {"DRY_RUN": "1"})
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{name} is not set" in done.stderr


@pytest.mark.parametrize(("status", "code", "requeued"), [(0, 0, 0), (75, 0, 1), (1, 1, 0)])
def test_slurm_asks_for_a_requeue_after_a_preemption_alone(tmp_path, status, code, requeued):
    for name, body in (("srun", f"exit {status}"), ("scontrol", 'echo "$@" >> "$CALLS"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    values = SLURM_VALUES | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "CALLS": str(tmp_path / "calls"),
    }
    assert shell("slurm.sbatch", values=values).returncode == code
    calls = (tmp_path / "calls").read_text() if (tmp_path / "calls").exists() else ""
    assert calls == "requeue 7\n" * requeued


def test_slurm_tasks_fit_the_gpus():
    text = (CLOUD / "slurm.sbatch").read_text()
    settings = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)", text, re.MULTILINE))
    assert settings["ntasks-per-node"] == settings["gpus-per-node"]


def test_container_file():
    """What it copies is there, and is all that the installation needs."""
    text = (CLOUD / "Dockerfile").read_text()
    copied = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY ")]
    names = set(itertools.chain.from_iterable(copied))
    assert all((ROOT / name).exists() for name in names)
    assert {"requirements.txt", "setup.py", "README.md", "LICENSE"} <= names
    assert {"core_jax", "rec_jax", "reasoning_jax", "launch"} <= names
    condition = re.search(r"RUN (case .*?esac)", text, re.DOTALL)
    assert condition
    for extra, code in (("tpu", 0), ("cuda12", 0), ("cuda13", 0), ("", 1), ("rocm", 1)):
        words = condition[1].replace("\\\n", "")
        done = subprocess.run(
            ["sh", "-c", words], env=environment({"EXTRA": extra}), capture_output=True, text=True
        )
        assert done.returncode == code
        assert code == 0 or f"EXTRA is '{extra}'" in done.stderr
    base = re.search(r"FROM python:3\.(\d+)", text)
    assert base and 11 <= int(base[1]) <= 13
