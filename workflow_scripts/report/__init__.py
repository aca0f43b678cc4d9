"""Run and render the notebooks."""
