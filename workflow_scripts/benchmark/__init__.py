"""Measure the trainers side by side."""
