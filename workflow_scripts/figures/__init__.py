"""Draw the figures from tables."""
