"""Plan, preprocess and split a task with nnU-Net."""
