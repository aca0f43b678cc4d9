"""Each job takes its own GPU; a fake `nvidia-smi` lists the GPUs."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.tree import ROOT
from workflow_scripts.common import gpus, hardware
from workflow_scripts.common.errors import UserError
from workflow_scripts.records.energy_meter import EnergyMeter, EnergySettings

THREE = [f"GPU {n}: NVIDIA H100 (UUID: GPU-{n}a3b-77)" for n in range(3)]
DIVIDED = [
    "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-63fe-0)",
    "  MIG 1g.5gb      Device  0: (UUID: MIG-GPU-63fe-0/7/0)",
    "  MIG 3g.20gb     Device  1: (UUID: MIG-c6d4-8)",
    "Unable to determine the device handle for GPU0000:41:00.0: Unknown Error",
    "GPU 2: NVIDIA A100-SXM4-40GB (UUID: GPU-0f2c-2)",
]
CPU = SimpleNamespace(device="cpu", precision="fp32", deterministic=False, memory_format="auto")
ANY = SimpleNamespace(device="auto", precision="auto", deterministic=False, memory_format="auto")
HOLDER = """
import json, os, sys, time
from pathlib import Path
from types import SimpleNamespace
from workflow_scripts.common import gpus
gpus.POLL = 0.05
gpus.lease_folder = lambda: Path(sys.argv[1])
gpu = gpus.take_gpu()
began = time.time()
if sys.argv[3] == "fork" and os.fork() == 0:
    time.sleep(600)
print("has it", flush=True)
time.sleep(float(sys.argv[4]))
found = {"gpu": gpu.index, "visible": os.environ["CUDA_VISIBLE_DEVICES"]}
Path(sys.argv[2]).write_text(json.dumps({**found, "from": began, "to": time.time()}))
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Yield a file with the lines of `nvidia-smi -L`; the test's locks are beside it."""
    listed = tmp_path / "listed"
    program = tmp_path / "bin/nvidia-smi"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\n[ "$1" = -L ] && exec cat {listed}\n')
    program.chmod(0o755)
    listed.write_text("\n".join(THREE) + "\n")
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    (tmp_path / "locks").mkdir()
    monkeypatch.setattr(gpus, "lease_folder", lambda: tmp_path / "locks")
    monkeypatch.setattr(gpus, "_held", [])
    yield listed
    for lease in gpus._held:
        lease.give_up()


def hold(folder, name, seconds, kind="plain"):
    """Start a process that takes a GPU for `seconds` and records which GPU it had, and when."""
    arguments = [folder / "locks", folder / f"{name}.json", kind, seconds]
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def assert_alone(spans):
    """Assert that no two spans of time on the same GPU overlap."""
    for gpu in {span["gpu"] for span in spans}:
        turns = sorted((s["from"], s["to"]) for s in spans if s["gpu"] == gpu)
        assert all(end <= start for (_, end), (start, _) in pairwise(turns))


# --- which GPUs there are


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [0, 1, 2]),
        ("1", [1]),
        ("2,0", [2, 0]),
        ("GPU-1a", [1]),
        ("0,GPU-0a3b-77,1", [0, 1]),
        ("7,2", [2]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
    ],
)
def test_visible_gpus_are_those_that_the_variable_names(machine, visible, expected):
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert [gpu.index for gpu in gpus.visible_gpus(environment)] == expected


def test_instances_stand_for_a_divided_gpu(machine):
    machine.write_text("\n".join(DIVIDED))
    found = gpus.installed_gpus()
    assert [(gpu.index, gpu.uuid) for gpu in found] == [
        (0, "MIG-GPU-63fe-0/7/0"),
        (0, "MIG-c6d4-8"),
        (2, "GPU-0f2c-2"),
    ]
    assert {gpu.card for gpu in found} == {"GPU-63fe-0", "GPU-0f2c-2"}
    assert str(found[1]) == "GPU 0 (NVIDIA A100-SXM4-40GB MIG 3g.20gb, MIG-c6d4-8)"
    named = gpus.visible_gpus({"CUDA_VISIBLE_DEVICES": "MIG-c6"})
    assert named == [found[1]]


def test_a_gpu_that_is_not_there_is_named(machine, monkeypatch):
    with pytest.raises(UserError, match=r"CUDA_VISIBLE_DEVICES is '5', but the GPUs are GPU 0"):
        gpus.visible_gpus({"CUDA_VISIBLE_DEVICES": "5"})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert gpus.count_gpus() == 1, "the Snakefile can still be read"


def test_without_a_driver_there_is_none(machine, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(gpus, "_has_driver", lambda: False)
    assert gpus.visible_gpus({}) == []
    assert gpus.take_gpu() is None
    assert gpus.count_gpus() == 0


# --- one job, one GPU


def test_eight_trainings_share_three_gpus(machine, tmp_path):
    holders = [hold(tmp_path, name, 0.3) for name in range(8)]
    assert [holder.wait(60) for holder in holders] == [0] * 8
    spans = [json.loads((tmp_path / f"{name}.json").read_text()) for name in range(8)]
    assert_alone(spans)
    assert {span["gpu"] for span in spans} == {0, 1, 2}
    assert all(span["visible"] == f"GPU-{span['gpu']}a3b-77" for span in spans)


def test_two_snakemakes_share_the_gpus(machine, tmp_path):
    """Each of them would start as many jobs as there are GPUs."""
    runs = []
    for study in ("one", "two"):
        folder = tmp_path / study
        folder.mkdir()
        (folder / "holder.py").write_text(HOLDER)
        (folder / "Snakefile").write_text(
            "rule all:\n    input: expand('{n}.json', n=range(4))\n"
            "rule train:\n    output: '{n}.json'\n    resources: gpu=1\n"
            f"    shell: '{sys.executable} holder.py {tmp_path / 'locks'} {{output}} plain 0.3'\n"
        )
        runs.append(
            subprocess.Popen(
                [sys.executable, "-m", "snakemake", "--cores", "4", "--resources", "gpu=3"],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
    assert [run.wait(180) for run in runs] == [0, 0]
    spans = [json.loads(path.read_text()) for path in tmp_path.glob("*/?.json")]
    assert len(spans) == 8
    assert_alone(spans)


@pytest.mark.parametrize("kind", ["plain", "fork"])
def test_a_killed_job_frees_its_gpu(machine, tmp_path, kind):
    """Also if one of its workers is still alive."""
    machine.write_text(THREE[1] + "\n")
    killed = hold(tmp_path, "killed", 600, kind)
    assert killed.stdout.readline() == "has it\n"
    waiting = hold(tmp_path, "waiting", 0)
    time.sleep(0.5)
    assert waiting.poll() is None
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert waiting.wait(30) == 0
    assert json.loads((tmp_path / "waiting.json").read_text())["gpu"] == 1


def test_a_gpu_that_vanishes_is_waited_for_no_longer(machine, tmp_path, monkeypatch):
    monkeypatch.setattr(gpus, "POLL", 0.01)
    lost = gpus.GpuLease(tmp_path / "locks", gpus.installed_gpus()[0])
    assert lost.take()
    lists = iter([gpus.installed_gpus()[:1], gpus.installed_gpus()[2:]])
    found = gpus.wait_for_gpu(lambda: next(lists), tmp_path / "locks")
    assert found.gpu.index == 2
    assert gpus.wait_for_gpu(lambda: [], tmp_path / "locks") is None
    found.give_up()
    lost.give_up()


def test_a_job_that_waits_says_so_once(machine, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(gpus, "announce", said.append)
    monkeypatch.setattr(gpus, "POLL", 0.01)
    only = gpus.installed_gpus()[:1]
    held = gpus.GpuLease(tmp_path / "locks", only[0])
    assert held.take()
    looks = []

    def look():
        looks.append(1)
        if len(looks) == 5:
            held.give_up()
        return only

    lease = gpus.wait_for_gpu(look, tmp_path / "locks")
    lease.give_up()
    assert len(looks) == 5
    assert said == ["waiting for a free GPU: GPU 0 (NVIDIA H100, GPU-0a3b-77)"]


def test_a_process_takes_one_gpu_for_its_whole_life(machine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,1")
    first = gpus.take_gpu()
    assert first.index == 2
    assert os.environ["CUDA_VISIBLE_DEVICES"] == first.uuid
    assert gpus.take_gpu() == first


@pytest.mark.parametrize(("given", "expected"), [("1", None), ("1,2", "GPU-1a3b-77")])
def test_what_slurm_gave_stands(machine, tmp_path, monkeypatch, given, expected):
    """Jobs may share a GPU on purpose; if a job has several, each training takes one."""
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert gpus.take_gpu().index == 1
    assert os.environ["CUDA_VISIBLE_DEVICES"] == (expected or given)
    assert len(list((tmp_path / "locks").iterdir())) == (expected is not None)


# --- who uses it


def test_a_job_on_the_cpu_takes_none(machine, tmp_path):
    assert hardware.prepare(CPU, threads=1).gpu is None
    assert not list((tmp_path / "locks").iterdir())


def test_the_gpu_is_chosen_before_cuda_is_asked(machine, monkeypatch):
    seen = []
    monkeypatch.setattr(
        hardware.torch.cuda,
        "is_available",
        lambda: seen.append(os.environ.get("CUDA_VISIBLE_DEVICES")) or True,
    )
    monkeypatch.setattr(hardware.torch.backends.cudnn, "benchmark", False)
    found = hardware.prepare(ANY, threads=1)
    assert seen == ["GPU-0a3b-77"]
    assert (found.device, found.gpu.index) == ("cuda", 0)


def test_only_the_gpu_of_the_training_is_metered(monkeypatch):
    """Meter by index, because codecarbon looks for a UUID without its first letter."""
    codecarbon = pytest.importorskip("codecarbon")
    from codecarbon.external.hardware import GPU

    class Devices:
        device_count, devices = 3, ()

        def get_gpu_static_info(self):
            return [{"uuid": f"GPU-{n}", "gpu_index": n} for n in range(3)]

    asked = {}

    class Tracker:
        def __init__(self, **options):
            asked.update(options)
            raise OSError("no sensors here")

    monkeypatch.setattr(codecarbon, "OfflineEmissionsTracker", Tracker)
    gpu = gpus.Gpu(2, "MIG-x", "A100 MIG 1g.5gb", "GPU-2")
    EnergyMeter(EnergySettings("DEU", "process"), gpu)
    assert asked["gpu_ids"] == [2]
    EnergyMeter(EnergySettings("DEU", "process"))
    assert asked["gpu_ids"] is None
    monkeypatch.setattr("codecarbon.external.hardware.AllGPUDevices", Devices)
    assert GPU(gpu_ids=[2])._get_gpu_ids() == [2]
    assert GPU(gpu_ids=["GPU-2"])._get_gpu_ids() == [], "else pass the UUID"


def test_snakemake_counts_the_gpus(machine, tmp_path):
    """Unless the user gives a number, or nothing runs on a GPU."""
    Path(tmp_path, "Snakefile").write_text(
        f"include: '{ROOT}/rules/common.smk'\n"
        "rule all:\n    shell: 'true'\n"
        "print('GPUs:', workflow.global_resources['gpu'].value "
        "if 'gpu' in workflow.global_resources else None)\n"
    )

    def count(*arguments):
        config = ["--configfile", ROOT / "config/studies/hippocampus.yaml"]
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", "-n", "--cores", "1", *arguments, *config],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        return next(line for line in done.stdout.splitlines() if line.startswith("GPUs: "))

    assert count() == "GPUs: 3"
    assert count("--resources", "gpu=2") == "GPUs: 2"
    assert count("--config", "training={device: cpu}") == "GPUs: None"
