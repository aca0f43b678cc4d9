"""Train, resume and validate one fold."""
