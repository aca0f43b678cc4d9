"""Code shared by all stages."""
