"""Columns of the tables of a run, shared by their writers and readers."""

EPOCHS = [
    "epoch", "stage", "patch_size", "batch_size", "lr", "train_loss", "val_loss", "pseudo_dice",
    "seconds", "kwh", "kg_co2eq", "gflop", "train_seconds", "val_seconds", "train_gflop",
    "voxels_per_iteration", "attempt", "iterations", "field_of_view", "augmentation",
    "compile_seconds", "skipped_steps", "loss_scale", "wait_seconds", "process_peak_mb",
    "device_peak_mb",
]  # fmt: skip
STAGES = [
    "stage", "patch_size", "batch_size", "epochs", "first_epoch", "seconds", "kwh", "kg_co2eq",
    "gflop", "train_seconds", "val_seconds", "train_gflop", "voxels_per_iteration", "train_loss",
    "pseudo_dice", "iterations", "field_of_view", "augmentation", "compile_seconds",
    "skipped_steps", "wait_seconds", "process_peak_mb", "device_peak_mb",
]  # fmt: skip
ENERGY = [
    "attempt", "phase", "stage", "epochs", "seconds", "kwh", "kg_co2eq", "kwh_kept",
    "kg_co2eq_kept", "cpu_kwh", "gpu_kwh", "ram_kwh", "sensors", "tracking_mode", "country",
    "g_co2eq_per_kwh", "intensity_year", "pue", "cpu_model", "gpu_model", "codecarbon", "error",
    "cpu_source", "gpu_source", "ram_source", "cpu_seconds", "machine_cpu_seconds", "note",
]  # fmt: skip
SURFACE = ["case", "label", "nsd", "tolerance_mm", "tolerance_px"]
TABLES = {
    "epochs.csv": EPOCHS,
    "stages.csv": STAGES,
    "energy.csv": ENERGY,
    "surface.csv": SURFACE,
}
ADDED_LATER = {
    "iterations", "field_of_view", "augmentation", "intensity_year", "compile_seconds",
    "skipped_steps", "loss_scale", "wait_seconds", "process_peak_mb", "device_peak_mb",
    "cpu_source", "gpu_source", "ram_source", "cpu_seconds", "machine_cpu_seconds", "note",
    "tolerance_px",
}  # fmt: skip
"""Columns missing in runs of earlier versions."""
TEXTS = {
    "patch_size", "field_of_view", "phase", "sensors", "tracking_mode", "country", "cpu_model",
    "gpu_model", "codecarbon", "error", "case", "label",
    "cpu_source", "gpu_source", "ram_source", "note",
}  # fmt: skip
"""Text columns; all others are numeric."""
COUNTER, ESTIMATE = "counter", "estimate"
"""Sources of an energy: read from the hardware, or modelled."""
