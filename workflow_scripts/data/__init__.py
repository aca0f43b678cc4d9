"""Bring a task's data into nnU-Net's raw format."""
