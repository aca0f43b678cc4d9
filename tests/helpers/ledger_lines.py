"""Lines of a ledger, as dictionaries with the keys that every version has written."""

from workflow_scripts.records.ledger import entry_of

METER = {
    "sensors": "CPU: cpu_load (8 W TDP); RAM: estimate",
    "tracking_mode": "process",
    "country": "DEU",
    "pue": 1.0,
    "cpu_model": "Some CPU",
    "gpu_model": "",
    "codecarbon": "3.3.2",
}
STEPS = {
    "epoch": 0,
    "stage": 0,
    "patch_size": "8x4x4",
    "batch_size": 2,
    "gflop": 5.0,
    "train_seconds": 8.0,
    "val_seconds": 2.0,
    "train_gflop": 4.0,
    "voxels_per_iteration": 100.0,
}
RESULT = {"lr": 0.01, "train_loss": -0.1, "val_loss": -0.2, "pseudo_dice": 0.1}


def start(number=1, resumed_at=0, **fields):
    """Return the start of an attempt."""
    return {
        "entry": "attempt",
        "attempt": number,
        "started": f"2024-05-0{number}T00:00:00+00:00",
        "resumed_at": resumed_at,
        "device": "cpu",
        "precision": "fp32",
        "threads": 2,
        "gpu_model": None,
        "versions": {"torch": f"{number}.0"},
        "git_commit": f"commit{number}",
        "trainer_code": f"code{number}",
        "meter": METER,
        **fields,
    }


def work(number, phase, kwh=1.0, seconds=1.0, **fields):
    """Return a piece of work."""
    own = {
        "training": {**STEPS, **RESULT},
        "validation": {"mirroring": True, "ended": f"2026-01-0{number}"},
    }
    return {
        "entry": "work",
        "attempt": number,
        "phase": phase,
        "seconds": seconds,
        "kwh": kwh,
        "cpu_kwh": kwh / 2,
        "gpu_kwh": 0.0,
        "ram_kwh": kwh / 2,
        "kg_co2eq": kwh * 0.4,
        "error": "",
        **own.get(phase, {}),
        **fields,
    }


def end(number, how="finished"):
    """Return the end of an attempt."""
    return {"entry": "end", "attempt": number, "how": how}


def entries_of(lines):
    """Return the entries that lines contain."""
    return [entry_of(line) for line in lines]
