"""Search a schedule of frequencies for a task, part by part."""
