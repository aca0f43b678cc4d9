"""Collect results, compare arms, check published claims."""
