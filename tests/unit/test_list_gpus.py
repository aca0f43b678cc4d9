"""The GPUs of a machine without `nvidia-smi`; made-up libraries of the driver list them."""

import ctypes
import uuid
from types import SimpleNamespace

import pytest

from workflow_scripts.common import gpus, hardware, list_gpus

CARDS = {
    "GPU-0a3b-77": ("NVIDIA H100", []),
    "broken": None,
    "GPU-63fe-0": (
        "NVIDIA A100-SXM4-40GB",
        [("MIG-c6d4-8", "NVIDIA A100-SXM4-40GB MIG 1g.5gb"), None, ("MIG-c6d4-9", "MIG 3g.20gb")],
    ),
}
NOT_FOUND = 6


class Nvml:
    """NVML's functions with the signatures of its reference; a handle is a card or an instance."""

    def __init__(self):
        self.handles = {}

    def nvmlInit_v2(self):  # noqa: N802
        return 0

    def nvmlDeviceGetCount_v2(self, count):  # noqa: N802
        count._obj.value = len(CARDS)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle):  # noqa: N802
        found = list(CARDS)[index.value]
        return self._give(handle, found, CARDS[found] and CARDS[found][0])

    def nvmlDeviceGetMaxMigDeviceCount(self, card, count):  # noqa: N802
        count._obj.value = len(CARDS[self.handles[card.value][0]][1])
        return 0

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card, index, handle):  # noqa: N802
        found = CARDS[self.handles[card.value][0]][1][index.value]
        return self._give(handle, *found) if found else NOT_FOUND

    def nvmlDeviceGetName(self, handle, buffer, length):  # noqa: N802
        return self._write(buffer, length, self.handles[handle.value][1])

    def nvmlDeviceGetUUID(self, handle, buffer, length):  # noqa: N802
        return self._write(buffer, length, self.handles[handle.value][0])

    def _give(self, handle, found, name):
        if name is None:
            return NOT_FOUND
        handle._obj.value = len(self.handles) + 1
        self.handles[handle._obj.value] = found, name
        return 0

    def _write(self, buffer, length, text):
        assert length.value > len(text)
        buffer.value = text.encode()
        return 0


class Cuda:
    """The functions of CUDA's driver API."""

    uuids = (uuid.UUID(int=1), uuid.UUID(int=2))
    names = ("NVIDIA H100", "NVIDIA A100-SXM4-40GB MIG 1g.5gb")

    def cuInit(self, flags):  # noqa: N802
        return 0

    def cuDeviceGetCount(self, count):  # noqa: N802
        count._obj.value = 2
        return 0

    def cuDeviceGet(self, device, index):  # noqa: N802
        device._obj.value = index.value
        return 0

    def cuDeviceGetName(self, buffer, length, device):  # noqa: N802
        buffer.value = self.names[device.value].encode()
        return 0

    def cuDeviceGetUuid_v2(self, buffer, device):  # noqa: N802
        buffer[:] = self.uuids[device.value].bytes
        return 0


def install(monkeypatch, **libraries):
    def load(name):
        if name not in libraries:
            raise OSError(f"{name}: cannot open shared object file")
        return libraries[name]

    monkeypatch.setattr(list_gpus.ctypes, "CDLL", load)


def test_nvml_lists_cards_and_instances_as_nvidia_smi_does(monkeypatch):
    install(monkeypatch, **{"libnvidia-ml.so.1": Nvml(), "libcuda.so.1": Cuda()})
    found = gpus._parse("\n".join(list_gpus.list_gpus()))
    assert [(gpu.index, gpu.uuid, gpu.name) for gpu in found] == [
        (0, "GPU-0a3b-77", "NVIDIA H100"),
        (2, "MIG-c6d4-8", "NVIDIA A100-SXM4-40GB MIG 1g.5gb"),
        (2, "MIG-c6d4-9", "NVIDIA A100-SXM4-40GB MIG 3g.20gb"),
    ]


@pytest.mark.parametrize("nvml", [None, "old driver"])
def test_cuda_lists_them_where_nvml_is_missing_or_fails(monkeypatch, nvml):
    class Failing(Nvml):
        def nvmlInit_v2(self):  # noqa: N802
            return 18  # library and driver differ

    libraries = {"libcuda.so.1": Cuda()} | ({"libnvidia-ml.so.1": Failing()} if nvml else {})
    install(monkeypatch, **libraries)
    found = gpus._parse("\n".join(list_gpus.list_gpus()))
    assert [(gpu.index, gpu.uuid) for gpu in found] == [
        (0, f"GPU-{Cuda.uuids[0]}"),
        (1, f"MIG-{Cuda.uuids[1]}"),
    ]


def test_without_a_driver_nothing_is_listed(monkeypatch):
    install(monkeypatch)
    assert list_gpus.list_gpus() == []


# --- in the Snakefile and in a job


@pytest.fixture
def container(tmp_path, monkeypatch):
    """A machine without `nvidia-smi`, with a lister that shows which variables it got."""
    lister = tmp_path / "list_gpus.py"
    lister.write_text(
        "import os\n"
        "assert 'CUDA_VISIBLE_DEVICES' not in os.environ\n"
        "assert os.environ['CUDA_DEVICE_ORDER'] == 'PCI_BUS_ID'\n"
        "for n in range(2): print(f'GPU {n}: NVIDIA H100 (UUID: GPU-{n}a3b-77)')\n"
    )
    monkeypatch.setattr(gpus, "LIST_GPUS", lister)
    monkeypatch.setattr(gpus, "_has_driver", lambda: True)
    monkeypatch.setattr(gpus, "_held", [])
    monkeypatch.setattr(gpus, "lease_folder", lambda: tmp_path)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("PATH", "/nowhere")
    yield tmp_path
    for lease in gpus._held:
        lease.give_up()


def test_gpus_are_counted_and_locked_without_nvidia_smi(container):
    assert gpus.count_gpus() == 1
    assert [gpu.uuid for gpu in gpus.installed_gpus()] == ["GPU-0a3b-77", "GPU-1a3b-77"]
    taken = gpus.take_gpu()
    assert taken.uuid == "GPU-1a3b-77"
    assert not gpus.GpuLease(container, taken).take(), "no other training may use it"


def test_gpus_are_counted_if_nvidia_smi_fails(container, monkeypatch):
    program = container / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{container}:/bin")
    assert gpus.count_gpus() == 1


def test_a_gpu_that_only_torch_sees_is_locked_too(container, monkeypatch):
    """Two trainings in process mode would otherwise share it."""
    monkeypatch.setattr(gpus, "_has_driver", lambda: False)
    monkeypatch.setattr(hardware.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(hardware.torch.cuda, "get_device_name", lambda: "AMD Instinct MI300X")
    monkeypatch.setattr(hardware.torch.backends.cudnn, "benchmark", False)
    wanted = SimpleNamespace(
        device="auto", precision="auto", deterministic=False, memory_format="auto"
    )
    found = hardware.prepare(wanted, threads=1)
    assert (found.device, found.gpu) == ("cuda", None)
    (lease,) = gpus._held
    assert not gpus.GpuLease(container, lease.gpu).take()


def test_the_library_is_loaded_only_if_it_exists(monkeypatch):
    loaded = []

    def load(name):
        loaded.append(name)
        raise OSError

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert not gpus._has_driver()
    assert loaded == ["libnvidia-ml.so.1", "libcuda.so.1"]
