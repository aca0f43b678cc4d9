"""Schedules as pure functions of the plan: no torch, no nnU-Net."""
