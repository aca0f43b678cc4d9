"""Settings of all tests."""

from hypothesis import settings

# A slow machine is not an error.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")

LONGEST = ("test_study", "test_own_dataset", "test_real_task04", "test_faults", "test_loading")
"""Files that several workers should begin with, so that none of them is left for the end."""


def pytest_collection_modifyitems(items):
    """Run the longest files first, and the others in the order of `testpaths`."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
