"""Hashes of content. The module imports only what Python itself has."""

import hashlib
import json


def json_hash(value: object) -> str:
    """Return a short hash of a JSON value that does not depend on its formatting."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
