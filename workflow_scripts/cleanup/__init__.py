"""Remove what can be made again."""
