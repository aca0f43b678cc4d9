"""The ledger of a training, which survives a kill.

The ledger (`ledger.jsonl` in nnU-Net's fold folder) gets one line for each piece of work as it
ends: the start of every attempt, its set-up, each epoch, the final validation. `run_tables`
derives the files of a run from it.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workflow_scripts.trainers.curricula.durable_files import sync

Entry = dict[str, Any]
"""A line of the ledger, identified by its keys `entry` and `phase`."""

KILLED = "without a message"
"""`how` of an attempt that was killed and could not write its own end."""


class Ledger:
    """Append-only lines of JSON; an incomplete line, left by a kill, is ignored."""

    def __init__(self, path: Path, before_append: Callable[[], None] = lambda: None) -> None:
        """Open the ledger at `path`, which need not exist yet.

        `before_append` raises an exception if this process must not write.
        """
        self.path, self._before_append = path, before_append

    def read(self) -> list[Entry]:
        """Return all complete entries in the order in which they were written."""
        if not self.path.exists():
            return []
        entries: list[Entry] = []
        for line in self.path.read_text().splitlines():
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return entries

    def append(self, entry: Entry) -> None:
        """Write one entry and flush it to the disk."""
        self._before_append()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        with self.path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync(self.path.parent)
