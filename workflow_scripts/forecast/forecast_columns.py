"""Columns of forecast.csv that several scripts use; the module imports nothing."""

WORK = ["train_tflop", "val_tflop", "final_tflop"]
SUMS = [*WORK, "waiting_hours", "hours", "kwh", "kg_co2eq"]

UNPLANNED = "not planned yet"
"""Value of `plan` for a task that cannot be forecast."""
