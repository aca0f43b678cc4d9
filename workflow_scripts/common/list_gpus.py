"""Print the GPUs of this machine as `nvidia-smi -L` does, for machines without that command.

It runs in its own process (`python list_gpus.py`), because CUDA reads `CUDA_VISIBLE_DEVICES` only
once per process. NVML (libnvidia-ml) lists all GPUs and their instances (MIG). Without it, as in a
container whose only driver capability is `compute`, the library of CUDA itself is asked.

Sources: the references of NVML and of the CUDA driver API.
"""

import ctypes
import uuid
from collections.abc import Iterator

LENGTH = 96
"""Length of a text that a library writes; NVML's UUIDs and names are shorter."""
NAME_OF_INSTANCE = "MIG"


class LibraryError(Exception):
    """A call of one of the driver's libraries failed."""


def _call(library: ctypes.CDLL, name: str, *arguments: object) -> None:
    if code := getattr(library, name)(*arguments):
        raise LibraryError(f"{name}: error {code}")


def _text(library: ctypes.CDLL, name: str, handle: ctypes.c_void_p) -> str:
    buffer = ctypes.create_string_buffer(LENGTH)
    _call(library, name, handle, buffer, ctypes.c_uint(LENGTH))
    return buffer.value.decode()


def list_with_nvml() -> Iterator[str]:
    """Yield the lines of `nvidia-smi -L`.

    Raises OSError if NVML is missing, and LibraryError if it fails.
    """
    nvml = ctypes.CDLL("libnvidia-ml.so.1")
    _call(nvml, "nvmlInit_v2")
    count = ctypes.c_uint()
    _call(nvml, "nvmlDeviceGetCount_v2", ctypes.byref(count))
    for index in range(count.value):
        handle = ctypes.c_void_p()
        try:
            _call(nvml, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
        except LibraryError:
            continue  # a broken GPU; nvidia-smi leaves it out as well
        name, identifier = (
            _text(nvml, f"nvmlDeviceGet{what}", handle) for what in ("Name", "UUID")
        )
        yield f"GPU {index}: {name} (UUID: {identifier})"
        yield from _instances(nvml, handle)


def _instances(nvml: ctypes.CDLL, card: ctypes.c_void_p) -> Iterator[str]:
    """Yield the lines of a divided card's instances."""
    most = ctypes.c_uint()
    try:
        _call(nvml, "nvmlDeviceGetMaxMigDeviceCount", card, ctypes.byref(most))
    except (LibraryError, AttributeError):  # it cannot be divided, or an old driver
        return
    for number in range(most.value):
        handle = ctypes.c_void_p()
        try:
            _call(
                nvml,
                "nvmlDeviceGetMigDeviceHandleByIndex",
                card,
                ctypes.c_uint(number),
                ctypes.byref(handle),
            )
        except LibraryError:
            continue  # none with this number
        name = _text(nvml, "nvmlDeviceGetName", handle)
        profile = name.rsplit(f"{NAME_OF_INSTANCE} ", 1)[-1].replace(" ", "")
        identifier = _text(nvml, "nvmlDeviceGetUUID", handle)
        yield f"  MIG {profile}  Device  {number}: (UUID: {identifier})"


def list_with_cuda() -> Iterator[str]:
    """Yield the lines of `nvidia-smi -L` for the devices that CUDA sees.

    Raises OSError if the library is missing, and LibraryError if it fails.
    """
    cuda = ctypes.CDLL("libcuda.so.1")
    _call(cuda, "cuInit", ctypes.c_uint(0))
    count = ctypes.c_int()
    _call(cuda, "cuDeviceGetCount", ctypes.byref(count))
    for index in range(count.value):
        device = ctypes.c_int()
        _call(cuda, "cuDeviceGet", ctypes.byref(device), ctypes.c_int(index))
        name = ctypes.create_string_buffer(LENGTH)
        _call(cuda, "cuDeviceGetName", name, ctypes.c_int(LENGTH), device)
        identifier = (ctypes.c_ubyte * 16)()
        # From CUDA 11.4 on, `_v2` returns the UUID of an instance instead of its card's.
        get = "cuDeviceGetUuid_v2" if hasattr(cuda, "cuDeviceGetUuid_v2") else "cuDeviceGetUuid"
        _call(cuda, get, identifier, device)
        text = name.value.decode()
        kind = "MIG" if f" {NAME_OF_INSTANCE} " in text else "GPU"
        yield f"GPU {index}: {text} (UUID: {kind}-{uuid.UUID(bytes=bytes(identifier))})"


def list_gpus() -> list[str]:
    """Return the lines of `nvidia-smi -L`; empty if no library answers."""
    for listing in (list_with_nvml, list_with_cuda):
        try:
            return list(listing())
        except (OSError, AttributeError, LibraryError):
            continue
    return []


if __name__ == "__main__":
    print("\n".join(list_gpus()))
