"""Settings of all tests."""

from hypothesis import settings

# A slow machine is not an error.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")
