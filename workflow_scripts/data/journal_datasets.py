"""Check own tasks that are declared as one of the journal's data sets beyond MSD."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from workflow_scripts.common.errors import UserError


def check_registered(
    description: Mapping[str, Any], data_set: str | None, task: str, register: Path
) -> None:
    """Check a dataset's description against the register; do nothing without a `data_set`.

    Args:
        description: content of its `dataset.json`, in nnU-Net's raw or MSD's format.
        data_set: name in the register, or None.
        task: name of the own task, for the message.
        register: `config/published/journal_datasets.yaml`.

    Raises:
        UserError: the number of cases, channels or labels differs; the message lists each.
    """
    if data_set is None:
        return
    known = yaml.safe_load(register.read_text(encoding="utf-8"))[data_set]
    labels = known["labels"]
    wanted = {
        "cases": known["cases"],
        "channels": [known["channels"]],
        "labels besides background": [labels if isinstance(labels, int) else len(labels)],
    }
    channels = description.get("channel_names", description.get("modality", {}))
    found = {
        "cases": description.get("numTraining"),
        "channels": len(channels),
        "labels besides background": len(description.get("labels", {})) - 1,
    }
    differing = [
        f"{found[what]} {what} (it has {' or '.join(map(str, values))})"
        for what, values in wanted.items()
        if found[what] not in values
    ]
    if differing:
        script = f", by nnU-Net's {known['conversion']}" if known["conversion"] else ""
        raise UserError(
            f"own_tasks.{task}.data_set is {data_set}, but its folder has {'; '.join(differing)}. "
            f"Provide the whole data set ({known['where']}{script}), or remove `data_set`"
        )
