"""Settings of the energy meter, which the Snakefile reads too."""

from dataclasses import dataclass
from typing import Annotated, Literal

from workflow_scripts.trainers.curricula.schedules.settings import CLOSED, Keywords


@dataclass(frozen=True)
class EnergySettings:
    """How energy and emissions are measured (codecarbon's offline tracker)."""

    __pydantic_config__ = CLOSED

    country: Annotated[str, Keywords(pattern="^[A-Z]{3}$")] = "DEU"
    """ISO 3166 alpha-3 code of the country, for the carbon intensity of its electricity."""
    tracking_mode: Literal["machine", "process"] = "machine"
    """`machine` measures processor and memory of the whole machine, `process` only this training's
    share. Both measure only the training's own GPU."""
    pue: Annotated[float, Keywords(minimum=1)] = 1.0
    """Power usage effectiveness of the data centre; every energy is multiplied by it."""
