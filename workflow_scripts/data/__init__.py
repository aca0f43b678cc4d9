"""Convert a task's data to nnU-Net's raw format."""
