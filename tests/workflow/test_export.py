"""`snakemake export_models`: which models, and what their cards say."""

import pytest

from helpers.tree import copy_tree, plan
from workflow_scripts.export.export_model import describe_data, describe_training
from workflow_scripts.study.tasks import MSD_CITATION

HIPPOCAMPUS = ("--configfile", "config/studies/hippocampus.yaml")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return copy_tree(tmp_path_factory.mktemp("export"))


def test_every_arm_and_seed_is_exported_after_its_folds(tree):
    changes = ("--config", "seeds=[12345,7]", "training={seed: 12345}", "folds=[0,2]")
    jobs, text = plan(tree, "export_models", *HIPPOCAMPUS, *changes)
    arms = 9
    assert (jobs["export_model"], jobs["train_fold"]) == (2 * arms, 2 * 2 * arms)
    assert "Exporting progressive_seed_7, Dataset004_Hippocampus" in text
    model = "results/hippocampus/models/progressive_seed_7/Dataset004_Hippocampus"
    name = "nnUNetTrainer__nnUNetPlans__3d_fullres"
    for path in (f"{model}/Dataset004_Hippocampus__{name}.zip", f"{model}/{name}/card.md"):
        jobs, _ = plan(tree, path, *HIPPOCAMPUS, *changes)
        assert (jobs["export_model"], jobs["train_fold"]) == (1, 2)


def test_networks_that_nnunet_does_not_know_are_left_to_bake(tree):
    jobs, text = plan(tree, "export_models", "--configfile", "config/studies/scale_space.yaml")
    assert jobs["export_model"] == 1
    assert "Exporting constant, Dataset004_Hippocampus" in text
    assert "bake_model" not in jobs


def record(fold, kwh):
    names = {"study": "mine", "task": "Task04_Hippocampus", "arm": "progressive", "seed": 3}
    length = {"epochs": 100, "iterations_per_epoch": 250}
    versions = {"versions": {"nnunetv2": "2.8.1", "torch": "2.14.1"}}
    cost = {"total_kwh": kwh, "total_kg_co2eq": None if kwh is None else kwh / 4}
    return {**names, **length, **versions, **cost, "fold": fold}


def test_the_card_names_the_training_and_the_energy_of_each_fold():
    facts = describe_training([record(0, 0.8), record(1, None)])
    assert facts["Study, arm, seed"] == "mine, progressive, 3"
    assert facts["Software"] == "nnunetv2 2.8.1, torch 2.14.1"
    assert facts["Energy, fold 0"] == "0.8 kWh, 0.2 kg CO2eq"
    assert facts["Energy, fold 1"] == "not measured"


def test_the_card_names_licence_and_citation_of_the_data():
    msd = {"licence": "CC-BY-SA-4.0", "citation": MSD_CITATION}
    written = {"licence": "CC-BY-SA 4.0", "reference": "Vanderbilt University Medical Center"}
    assert describe_data(written, msd) == {
        "Licence of the data": "CC-BY-SA-4.0",
        "Cite for the data": f"{MSD_CITATION}; Vanderbilt University Medical Center",
    }
    assert describe_data({"license": "CC0"}, {})["Licence of the data"] == "CC0"
    assert set(describe_data({}, {}).values()) == {"not stated"}
