"""Search for a task's frequency schedule, part by part."""
