"""A made-up powercap folder with energy counters, for tests: no joule here was used."""

from pathlib import Path
from typing import Any

from codecarbon.core import cpu, hardware_cache
from codecarbon.external import hardware

UJ = 1_000_000


class Domain:
    """An energy counter. `range_joules` is where it wraps; None: the kernel does not say."""

    def __init__(
        self, folder: Path, name: str, joules: float = 1000, range_joules: float | None = 262_143
    ) -> None:
        folder.mkdir(parents=True)
        self.path, self.range = folder / "energy_uj", range_joules
        (folder / "name").write_text(name + "\n")
        if range_joules is not None:
            (folder / "max_energy_range_uj").write_text(f"{range_joules * UJ:.0f}\n")
        self.set(joules)

    def set(self, joules: float) -> None:
        """Set the counter."""
        self.joules = joules
        fresh = self.path.with_suffix(".new")
        fresh.write_text(f"{joules * UJ:.0f}\n")
        fresh.replace(self.path)

    def add(self, joules: float) -> None:
        """Put energy in, as the hardware would."""
        after = self.joules + joules
        self.set(after % self.range if self.range else after)


class MadeUpRapl:
    """Counters below `root`, by their name in the kernel: `0` a package, `0:0` a part of it."""

    def __init__(self, root: Path) -> None:
        self.root, self.domains = root / "powercap", {}

    def add(self, number: str, name: str, **options: Any) -> Domain:
        """Add a counter."""
        parents = [f"intel-rapl:{number[: 1 + 2 * n]}" for n in range((len(number) + 1) // 2)]
        domain = Domain(self.root.joinpath("intel-rapl", *parents), name, **options)
        return self.domains.setdefault(number, domain)


def install(rapl: MadeUpRapl, patch: Any) -> None:
    """Let codecarbon find these counters; `patch(object, name, value)` replaces an attribute."""
    found, available = cpu.IntelRAPL, cpu.is_rapl_available
    patch(hardware, "IntelRAPL", lambda rapl_dir, **options: found(str(rapl.root), **options))
    patch(cpu, "is_rapl_available", lambda: available(str(rapl.root)))
    hardware_cache.clear_cache()
