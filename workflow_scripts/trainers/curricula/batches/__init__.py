"""Loading and changing batches."""
