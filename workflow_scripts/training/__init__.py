"""Train one fold, resume it, validate it."""
