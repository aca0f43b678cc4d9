"""Own tasks that are declared to be one of the journal's data sets."""

import pytest
import yaml

from helpers.tree import ROOT
from workflow_scripts.common.errors import UserError
from workflow_scripts.data.journal_datasets import check_registered

REGISTER = ROOT / "config/published/journal_datasets.yaml"
KNOWN = yaml.safe_load(REGISTER.read_text())
TASK = "Task520_Kidney"


def description(name, **changes):
    """Return a `dataset.json` that matches the register."""
    labels = KNOWN[name]["labels"]
    count = labels if isinstance(labels, int) else len(labels)
    return {
        "channel_names": {"0": KNOWN[name]["modality"]},
        "labels": {f"label {n}": n for n in range(count + 1)},
        "numTraining": KNOWN[name]["cases"][0],
    } | changes


@pytest.mark.parametrize("name", KNOWN)
def test_the_whole_data_set_is_accepted(name):
    check_registered(description(name), name, TASK, REGISTER)
    msd = description(name)
    msd["modality"] = msd.pop("channel_names")
    check_registered(msd, name, TASK, REGISTER)


def test_all_that_differs_is_named_with_where_to_ask():
    small = description("KiTS23", numTraining=20, labels={"background": 0, "kidney": 1})
    with pytest.raises(UserError) as caught:
        check_registered(small, "KiTS23", TASK, REGISTER)
    said = str(caught.value)
    assert f"own_tasks.{TASK}.data_set is KiTS23" in said
    assert "20 cases (it has 489); 1 labels besides background (it has 3)" in said
    assert "kits-challenge.org" in said
    assert "Dataset220_KiTS2023.py" in said


def test_another_dataset_is_not_compared():
    check_registered({}, None, TASK, REGISTER)


@pytest.mark.parametrize("name", KNOWN)
def test_scripts_of_nnunet_are_there(name):
    from importlib.resources import files

    for script in filter(None, (KNOWN[name]["conversion"] or "").split(", ")):
        assert files("nnunetv2.dataset_conversion").joinpath(script).is_file(), script


def test_the_configuration_knows_the_same_names():
    schema = yaml.safe_load((ROOT / "config/schemas/config.schema.yaml").read_text())
    own_task = schema["properties"]["own_tasks"]["additionalProperties"]
    names = own_task["properties"]["data_set"]["enum"]
    assert names == [*KNOWN, None]
