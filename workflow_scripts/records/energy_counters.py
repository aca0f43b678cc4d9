"""Energy counters of processor and GPU, read so that a fault is an error and never a number.

They replace codecarbon's devices. codecarbon 3.3.2 reads a counter once per piece of work, so that
one that overflows twice meanwhile loses energy; it counts an unreadable counter as 0, and charges
each of several processes with the whole processor.
"""

import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
from codecarbon.core.units import Energy, Power, Time
from codecarbon.external.hardware import CPU, GPU

from workflow_scripts.common.gpus import Gpu
from workflow_scripts.records.processor_time import ProcessorTime, sees_whole_machine

JOULES_PER_KWH = 3.6e6
MAX_WATTS = 1000.0
"""More than any processor package uses. A counter that wraps after 65 kJ, as on AMD, must be read
every minute; a reset counter looks like one that wrapped."""


class CountedProcessor(CPU):
    """A processor with RAPL counters, which codecarbon's monitor reads every second.

    Attributes:
        fault: why the energy since the last `measure_power_and_energy` is wrong, or "".
    """

    def __init__(self, found: Any, shared: bool) -> None:
        """Take over codecarbon's device.

        Args:
            found: codecarbon's CPU in mode `intel_rapl`.
            shared: whether to count this training's share of the processor instead of everything.
        """
        self.__dict__.update(found.__dict__)
        self._shared, self._kwh, self.fault = shared, 0.0, "not started"
        self._counters: Any = found._intel_interface
        self._unusable = _unusable(found._intel_interface._rapl_files, shared)

    def start(self) -> None:
        """Start a piece of work; without a fault it continues where the last one ended."""
        with self._power_history_lock:
            if not self.fault:
                return
            self._counters.start()
            self._kwh, self.fault = 0.0, self._unusable
            self._when, self._processor = time.monotonic(), ProcessorTime.now()

    def monitor_power(self) -> None:
        """Read the counters."""
        with self._power_history_lock:
            self._count()

    def measure_power_and_energy(self, last_duration: float) -> tuple[Any, Any]:
        """End a piece of work; return its mean power and its energy."""
        with self._power_history_lock:
            self._count()
            kwh, self._kwh = self._kwh, 0.0
        hours = last_duration / 3600
        return Power(kwh / hours if hours else 0.0), Energy(kwh)

    def _count(self) -> None:
        now, processor = time.monotonic(), ProcessorTime.now()
        elapsed, spent = now - self._when, processor.since(self._processor)
        files = list(self._counters._rapl_files)
        before = [file.last_energy for file in files]
        kwh = self._get_energy_from_cpus(Time(elapsed)).kWh
        self._when, self._processor = now, processor
        if not (self._counters.get_static_cpu_details() and math.isfinite(kwh)):
            kwh = 0.0
            self.fault = self.fault or "the processor's energy counters could not be read"
        for file, earlier in zip(files, before, strict=True):
            self.fault = self.fault or _fault(file, earlier, elapsed)
        # With less than one core busy, the machine counts as idle, and that belongs to no one.
        whole = max(spent.machine, elapsed)
        self._kwh += kwh * (min(spent.own / whole, 1.0) if self._shared and whole else 1.0)


def _fault(file: Any, earlier: Any, elapsed: float) -> str:
    """Return what is wrong with the last reading of codecarbon's `RAPLFile`, or ""."""
    if file.sample_skipped:
        return f"the energy counter {file.path} could not be read, or went backwards"
    full = float(file.max_energy_reading) * JOULES_PER_KWH
    if 0 < full < MAX_WATTS * elapsed:
        return f"the energy counter {file.path} may have wrapped in {elapsed:.0f} s without reading"
    most = MAX_WATTS * max(elapsed, 1.0)
    if file.last_energy < earlier and float(file.energy_delta) * JOULES_PER_KWH > most:
        return f"the energy counter {file.path} was reset"
    return ""


def _unusable(files: Iterable[Any], shared: bool) -> str:
    """Return why these counters are not the energy of the processor, or ""."""
    folders = [Path(file.path).parent for file in files]
    used = {_name(folder) for folder in folders}
    found = {
        _name(path.parent) for folder in folders for path in folder.parent.glob("*:*/energy_uj")
    }
    packages = {name for name in found if "package" in name}
    if not packages or not all("package" in name or "dram" in name for name in used):
        return f"only parts of the processor have energy counters: {', '.join(sorted(used))}"
    if missing := packages - used:
        return f"the energy counter of {', '.join(sorted(missing))} is not readable"
    if shared and not sees_whole_machine():
        return "the container hides the processor time of its machine, of which a share is charged"
    return ""


def _name(folder: Path) -> str:
    try:
        return (folder / "name").read_text(encoding="utf-8").strip().lower()
    except OSError:
        return folder.name


class CountedGpu(GPU):
    """GPUs with NVML's energy counters, or with power that codecarbon samples every second.

    Attributes:
        fault: why the energy since the last `start` is wrong, or "".
        note: what else used the GPU since the last `start`, or "".
    """

    def __init__(self, found: Any, shared: bool, gpu: Gpu | None) -> None:
        """Take over codecarbon's device.

        Args:
            found: codecarbon's GPU.
            shared: whether only this training's energy is wanted, which a counter of the whole card
                cannot tell if something else uses the card.
            gpu: the training's GPU; None if all are read.
        """
        self.__dict__.update(found.__dict__)
        self._shared, self.fault, self.note = shared, "", ""
        self._divided = gpu is not None and gpu.uuid != gpu.card

    @property
    def chosen(self) -> list[Any]:
        """The devices of codecarbon that are read."""
        chosen = set(self._get_gpu_ids())
        return [device for device in self.devices.devices if device.gpu_index in chosen]

    @property
    def counts(self) -> bool:
        """Whether all have an energy counter."""
        return all(device._has_counter for device in self.chosen)

    def start(self) -> None:
        """Start a piece of work."""
        self.fault, self.note = "", ""
        super().start()
        self._look_for_others()

    def monitor_power(self) -> None:
        """Sample the power of GPUs without an energy counter, and look for other processes."""
        super().monitor_power()
        self._look_for_others()

    def measure_power_and_energy(
        self, last_duration: float, gpu_ids: Iterable[int] | None = None
    ) -> tuple[Any, Any]:
        """End a piece of work; return mean power and energy of the GPUs."""
        self._look_for_others()
        kwh, chosen = 0.0, self.chosen
        if not chosen:
            self.fault = "the GPU was not found"
        for device in chosen:
            try:
                device.delta(Time(last_duration))
            except Exception as error:
                self.fault = f"GPU {device.gpu_index} could not be read: {error}"
                continue
            if device._has_counter and device._use_power_fallback:
                self.fault = f"the energy counter of GPU {device.gpu_index} was reset or unreadable"
            elif device._warned_power_failure:
                self.fault = f"the power of GPU {device.gpu_index} could not be read"
            kwh += device.energy_delta.kWh
        if self._shared and self.note:
            self.fault = self.fault or f"{self.note}, and its energy counter reads the whole card"
        self._total_power = Power(kwh / (last_duration / 3600) if last_duration else 0.0)
        return self._total_power, Energy(kwh)

    def _look_for_others(self) -> None:
        """Note other processes that compute on the GPU, as far as the driver shows them."""
        if self._divided:
            self.note = "the GPU is divided (MIG)"
            return
        for device in self.chosen:
            try:
                users = {process["pid"] for process in device._get_compute_processes()}
            except Exception:  # not every GPU and driver tells
                continue
            # In a container, even our own process may be listed by a number of another namespace.
            if len(users) > 1 and len(users) > len(users & _own_processes()):
                self.note = f"another process used GPU {device.gpu_index}"


def _own_processes() -> set[int]:
    process = psutil.Process()
    return {process.pid, *(child.pid for child in process.children(recursive=True))}
