"""Energy of consecutive pieces of work, read by codecarbon's offline tracker."""

import math
from dataclasses import replace
from typing import Any

from workflow_scripts.common.errors import UserError
from workflow_scripts.common.gpus import Gpu
from workflow_scripts.records.energy_reading import MeterDescription, Reading
from workflow_scripts.records.energy_settings import EnergySettings
from workflow_scripts.records.run_columns import COUNTER, ESTIMATE


def energy_mix(country: str) -> dict[str, Any]:
    """Return codecarbon's data on a country's electricity.

    `carbon_intensity` is in g CO2eq per kWh; `year` is that of the statistics.

    Args:
        country: ISO 3166-1 alpha-3.

    Raises UserError for a country whose carbon intensity codecarbon does not know.
    """
    from codecarbon.input import DataSource

    source: Any = DataSource  # codecarbon is untyped
    mix: dict[str, Any] = source().get_global_energy_mix_data().get(country, {})
    if math.isnan(mix.get("carbon_intensity", math.nan)):
        raise UserError(
            f"energy.country: codecarbon has no carbon intensity for {country}; use the "
            "ISO 3166 alpha-3 code of a country that it supports, such as DEU"
        )
    return mix


class EnergyMeter:
    """Meters pieces of work that follow each other without a gap.

    Always offline: without a network, codecarbon's online tracker silently reports Canada. The
    offline tracker replaces an unknown country by the world average; this class does not.

    Attributes:
        error: the reason if nothing can be read, or "".
    """

    def __init__(self, settings: EnergySettings, gpu: Gpu | None = None) -> None:
        """Find the sensors; a failure is kept in `error` and in every reading, never as zero.

        It never ends a training.

        Of several GPUs, only `gpu` is read. None reads all GPUs that codecarbon finds.

        Raises UserError for a country whose carbon intensity codecarbon does not know.
        """
        self._settings, self._gpu, self.error = settings, gpu, ""
        self._pieces = 0
        self._tracker: Any = None
        self._intensity_year: int | None = None
        try:
            from codecarbon import OfflineEmissionsTracker, emissions_tracker
            from codecarbon.core import util
            from codecarbon.external import ram

            # In a Slurm job, codecarbon needs `scontrol`, waits for it without a limit, and divides
            # the processor's power by the cores of the job instead of those of the machine.
            util.SLURM_JOB_ID = ram.SLURM_JOB_ID = None
            # codecarbon also reads ~/.codecarbon.config and ./.codecarbon.config. A region or
            # intensity set there would be recorded as the study country's.
            emissions_tracker.get_hierarchical_config = dict

            self._intensity_year = energy_mix(settings.country)["year"]
            self._tracker = OfflineEmissionsTracker(
                country_iso_code=settings.country,
                tracking_mode=settings.tracking_mode,
                pue=settings.pue,
                save_to_file=False,
                # By index: codecarbon 3.3.2 finds no GPU by its UUID, because it strips the G.
                gpu_ids=[gpu.index] if gpu else None,
                allow_multiple_runs=True,
                log_level="error",
            )
            self._begin()
        except UserError:
            raise
        except Exception as error:
            self._fail(error)

    def read(self) -> Reading:
        """End the current piece of work, begin the next and return the reading of the ended one."""
        if self.error:
            return Reading(error=self.error)
        try:
            data = self._tracker.stop_task(self._name)
            spent = _processor_time().since(self._processor)
            fault, note = self._joined("fault"), self._joined("note")
            self._begin()
            if not fault and not (data and data.energy_consumed > 0):
                fault = "codecarbon measured no energy for this piece of work"
            reading = Reading(error=fault)
            if not fault:
                reading = Reading(
                    kwh=data.energy_consumed,
                    cpu_kwh=data.cpu_energy,
                    gpu_kwh=data.gpu_energy,
                    ram_kwh=data.ram_energy,
                    kg_co2eq=data.emissions,
                    note=note,
                )
            return replace(reading, cpu_seconds=spent.own, machine_cpu_seconds=spent.machine)
        except Exception as error:
            self._fail(error)
            return Reading(error=self.error)

    def describe(self) -> MeterDescription:
        """Return how the energy is measured."""
        described = MeterDescription(
            cpu_source="",
            gpu_source="",
            ram_source="",
            tracking_mode=self._settings.tracking_mode,
            country=self._settings.country,
            intensity_year=self._intensity_year,
            pue=self._settings.pue,
        )
        if self.error:
            return described
        try:
            import codecarbon

            hardware = self._tracker.get_detected_hardware()
            devices = self._tracker._hardware
            kinds = {_component(device): _source(device) for device in devices}
            return replace(
                described,
                cpu_source=kinds.get("CPU", ""),
                gpu_source=kinds.get("GPU", ""),
                ram_source=kinds.get("RAM", ""),
                sensors="; ".join(sorted(map(_sensor, devices))),
                cpu_model=hardware["cpu_model"],
                gpu_model=hardware["gpu_model"],
                codecarbon=codecarbon.__version__,
            )
        except Exception as error:
            self._fail(error)
            return described

    def _begin(self) -> None:
        self._pieces += 1
        self._name = f"piece_{self._pieces}"
        self._processor = _processor_time()
        self._tracker.start_task(self._name)
        if self._pieces == 1:
            self._replace_devices()

    def _replace_devices(self) -> None:
        """Read counters with our own devices, and no GPU in mode `process` if none is used."""
        from workflow_scripts.records.energy_counters import CountedGpu, CountedProcessor

        found = getattr(self._tracker, "_hardware", [])
        shared = self._settings.tracking_mode == "process"
        devices: list[Any] = []
        for device in found:
            if _component(device) == "GPU" and (self._gpu or not shared):
                devices.append(CountedGpu(device, shared, self._gpu))
            elif _component(device) != "GPU":
                counted = getattr(device, "_mode", "") == "intel_rapl"
                devices.append(CountedProcessor(device, shared) if counted else device)
        for device in devices:
            device.start()
        found[:] = devices

    def _joined(self, name: str) -> str:
        texts = [getattr(device, name, "") for device in getattr(self._tracker, "_hardware", [])]
        return "; ".join(sorted(filter(None, texts)))

    def _fail(self, error: Exception) -> None:
        self.error = f"{type(error).__name__}: {error}".replace("\n", " ")


def _processor_time() -> Any:
    # Tables and figures import this module, but not psutil.
    from workflow_scripts.records.processor_time import ProcessorTime

    return ProcessorTime.now()


def _component(device: object) -> str:
    """Return `CPU`, `GPU` or `RAM` for a device of codecarbon or one of ours."""
    names = {"CountedProcessor": "CPU", "CountedGpu": "GPU"}
    kind = type(device).__name__
    return str(getattr(device, "chip_part", names.get(kind, kind)))


def _source(device: object) -> str:
    """Return whether a device's energy is read from a counter or estimated."""
    counted = type(device).__name__ == "CountedProcessor" or getattr(device, "counts", False)
    return COUNTER if counted else ESTIMATE


def _sensor(device: object) -> str:
    """Return a device's name and the source of its energy, such as `CPU: cpu_load (8 W TDP)`."""
    component = _component(device)
    if component == "CPU" and _source(device) == ESTIMATE:
        return f"CPU: {getattr(device, '_mode', 'unknown')} ({getattr(device, '_tdp', '?')} W TDP)"
    sensors = {
        "CPU": "CPU: RAPL",
        "GPU": f"GPU: nvml {'energy' if _source(device) == COUNTER else 'power'}",
        "RAM": "RAM: estimate",
    }
    return sensors.get(component, component)
