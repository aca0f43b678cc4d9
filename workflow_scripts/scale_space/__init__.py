"""Bake and evaluate scale-space networks."""
