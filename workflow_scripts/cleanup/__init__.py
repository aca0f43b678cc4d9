"""Remove files that can be made again."""
