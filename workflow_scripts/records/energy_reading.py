"""Energy of a piece of work, and how it was measured, as the ledger keeps them."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Reading:
    """Energy of one piece of work. If energies are NaN, `error` is the reason.

    Attributes:
        kwh, cpu_kwh, gpu_kwh, ram_kwh: energy, times the power usage effectiveness.
        kg_co2eq: emissions at the carbon intensity of the country.
        cpu_seconds, machine_cpu_seconds: processor time of this training with its children, and of
            everything on the machine.
        note: what else used the GPU whose energy was read.
    """

    kwh: float = math.nan
    cpu_kwh: float = math.nan
    gpu_kwh: float = math.nan
    ram_kwh: float = math.nan
    kg_co2eq: float = math.nan
    error: str = ""
    cpu_seconds: float = math.nan
    machine_cpu_seconds: float = math.nan
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class MeterDescription:
    """How the energy of an attempt is measured.

    Fields that are None by default are missing in the ledgers of earlier versions.

    Attributes:
        sensors: devices and the sources of their energy, such as `CPU: cpu_load (8 W TDP)`.
        cpu_source, gpu_source, ram_source: `counter`, `estimate`, or empty if there is no such
            component.
        tracking_mode, country, pue: see `EnergySettings`.
        intensity_year: year of the country's carbon intensity.
        cpu_model, gpu_model: names of the hardware.
        codecarbon: its version.
    """

    sensors: str = ""
    cpu_source: str | None = None
    gpu_source: str | None = None
    ram_source: str | None = None
    tracking_mode: str
    country: str
    intensity_year: int | None = None
    pue: float
    cpu_model: str = ""
    gpu_model: str = ""
    codecarbon: str = ""
