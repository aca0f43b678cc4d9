"""Loading, augmentation and low-pass filtering of batches."""
