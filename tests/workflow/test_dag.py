"""The jobs that Snakemake plans: dry runs in an empty folder, so no file exists yet."""

import re
from collections import Counter

import pytest
import yaml

from helpers.quick_study import quick_snakemake
from helpers.tree import ROOT, dry_run, plan, said, snakemake, trainings

STUDIES = ["demo", "hippocampus", "paper", "budget_sweep", "budget_sweep_folds"]
STUDIES += ["scale_space", "low_frequency", "learning_rates"]
ARMS = ["constant", "progressive", "random"]
HEAVY = {"torch", "nnunetv2", "pandas", "seaborn", "matplotlib", "codecarbon", "nibabel", "scipy"}
# Records only imports by the workflow itself: Snakemake's plugins may import anything.
PROBE = """
import os, sys

class Probe:
    def find_spec(name, path=None, target=None):
        own = tuple(os.environ["PROBED"].split(":"))
        frame = sys._getframe()
        while frame and not frame.f_code.co_filename.startswith(own):
            frame = frame.f_back
        if frame:
            with open(os.environ["PROBE"], "a") as file:
                file.write(name.partition(".")[0] + "\\n")

sys.meta_path.insert(0, Probe)
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return tmp_path_factory.mktemp("tree")


@pytest.fixture(scope="module")
def plans(tree):
    """The plan of every shipped study: jobs by rule, and the text."""
    return {name: plan(tree, "--configfile", f"config/studies/{name}.yaml") for name in STUDIES}


@pytest.mark.parametrize("name", STUDIES)
def test_every_training_of_a_shipped_study_is_planned_once(plans, name):
    config = yaml.safe_load((ROOT / f"config/studies/{name}.yaml").read_text())
    wanted = {
        (task, arm, fold)
        for task in config["tasks"]
        for arm in config["arms"]
        for fold in config["folds"]
    }
    jobs, text = plans[name]
    assert jobs["train_fold"] == len(wanted) * len(config.get("seeds", [0]))
    assert trainings(text) == wanted


@pytest.mark.parametrize("name", STUDIES)
def test_every_run_is_measured_and_every_study_judged(plans, name):
    jobs, _ = plans[name]
    assert jobs["measure_surface_distance"] == jobs["train_fold"]
    assert (jobs["assess_significance"], jobs["check_claims"]) == (1, 1)


def test_seeds_are_trainings_of_their_own_and_leave_those_of_the_first(tree, plans):
    jobs, text = plan(tree, "--config", "seeds=[3, 12345, 7]")
    alone = trainings(plans["demo"][1])
    assert jobs["train_fold"] == 3 * len(alone)
    found = re.findall(r"Training (\w+), (\w+), fold (\d), seed (\d+)$", text, re.M)
    assert {(task, arm, int(fold)) for task, arm, fold, _ in found} == alone
    assert len(set(found)) == len(found) == jobs["train_fold"]
    assert {seed for *_, seed in found} == {"3", "12345", "7"}
    task, arm, fold = min(alone)
    for suffix, seed in (("", 12345), ("_seed_3", 3)):
        path = f"results/demo/runs/{task}/{arm}/fold_{fold}{suffix}/run.json"
        _, text = plan(tree, path, "--config", "seeds=[3, 12345, 7]")
        assert re.findall(r"Training .*, seed (\d+)$", text, re.M) == [str(seed)]
    prepared = set(plans["demo"][0]) - {"all", "train_fold", "measure_surface_distance"}
    assert {rule: jobs[rule] for rule in prepared} == {
        rule: plans["demo"][0][rule] for rule in prepared
    }


def test_data_are_prepared_once_for_all_arms_and_folds(plans):
    jobs, _ = plans["paper"]
    shared = ["download_task", "extract_task", "convert_task", "fingerprint_task", "plan_task"]
    for rule in [*shared, "preprocess_task", "write_splits"]:
        assert jobs[rule] == 10, rule


def test_the_paper_is_planned_without_heavy_imports(tree, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(PROBE)
    seen = tmp_path / "imports.txt"
    own = [str(ROOT / part) for part in ("Snakefile", "rules", "workflow_scripts")]
    run = snakemake(
        tree,
        *("-n", "--configfile", "config/studies/paper.yaml"),
        env={"PYTHONPATH": str(tmp_path), "PROBE": str(seen), "PROBED": ":".join(own)},
    )
    assert re.search(r"^train_fold +450$", run.stdout, re.M)
    imported = set(seen.read_text().split())
    assert {"workflow_scripts", "jsonschema"} <= imported, "the probe does not see imports"
    assert imported & HEAVY == set()


def own_task(folder):
    """Return arguments that make the demo train a user's own dataset."""
    (folder / "dataset.json").write_text("{}")
    own = f"own_tasks={{Task501_Mine: {{folder: {folder}}}}}"
    return "--config", "tasks=[Task501_Mine]", own


def test_every_rule_is_reached_by_a_shipped_study(tree, plans, tmp_path):
    others = {
        "bench": plan(
            tree,
            "results/bench/bench.md",
            "results/bench/loading.md",
            "--configfile",
            "config/tools/bench.yaml",
        ),
        "gpu": plan(
            tree, "results/gpu_check/gpu_check.md", "--configfile", "config/tools/gpu_check.yaml"
        ),
        "sweep": plan(tree, "budget_sweep", "--configfile", "config/studies/budget_sweep.yaml"),
        "scales": plan(tree, "scale_space", "--configfile", "config/studies/scale_space.yaml"),
        "search": plan(tree, "search_curriculum"),
        "export": plan(tree, "export_models"),
        "forecast": plan(tree, "forecast", "--config", "budget={gpu_hours: 1}"),
        "fit": plan(tree, "fit", "--config", "fit={hours: 1}"),
        "budget": plan(tree, "--config", "budget={gpu_hours: 1}"),
        "clean": plan(tree, "clean_preprocessed", "clean_archives"),
        "own": plan(tree, *own_task(tmp_path)),
    }
    rules = set()
    for path in ROOT.glob("rules/*.smk"):
        rules |= set(re.findall(r"^(?:rule|checkpoint) (\w+):", path.read_text(), re.M))
    assert len(rules) > 15
    assert (
        rules - {rule for jobs, _ in [*plans.values(), *others.values()] for rule in jobs} == set()
    )


@pytest.mark.parametrize("name", STUDIES)
def test_no_target_is_listed_twice(plans, name):
    _, text = plans[name]
    block = re.search(r"^(?:local)?rule all:\n.*?^    input: (.+?)$", text, re.M | re.S)
    targets = block[1].split(", ")
    assert len(targets) > 20
    assert [target for target, n in Counter(targets).items() if n > 1] == []


def test_parts_of_a_study_are_targets_of_their_own(tree):
    jobs = {part: plan(tree, part)[0] for part in ("tables", "figures", "notebooks")}
    assert not any(rule.startswith("plot_") for rule in jobs["tables"])
    assert not any(rule.startswith("run_") for rule in jobs["figures"])
    assert jobs["notebooks"]["run_results_notebook"] == 1


def test_without_a_configfile_the_demo_is_planned(tree, plans):
    jobs, text = plan(tree)
    assert jobs == plans["demo"][0]
    assert trainings(text) == trainings(plans["demo"][1])


def test_one_key_on_the_command_line_changes_only_that_key_of_the_demo(tree):
    _, text = plan(tree, "--config", "folds=[2]")
    assert trainings(text) == {("Task99_BrainTissue", arm, 2) for arm in ARMS}
    assert "results/demo/" in text


def test_archives_of_a_folder_change_no_plan(tree, plans, tmp_path):
    jobs, _ = plan(
        tree, "--configfile", "config/studies/hippocampus.yaml", "--config", f"archives={tmp_path}"
    )
    assert jobs == plans["hippocampus"][0]


def test_plans_with_overrides_have_a_name_of_their_own(tree, plans):
    def files(text):
        return set(re.findall(r"nnUNetPlans_[0-9a-f]{8}\.json", text))

    other = "planning={overrides: {all: {batch_size: 3}}}"
    _, changed = plan(tree, "--configfile", "config/studies/hippocampus.yaml", "--config", other)
    assert len(files(changed)) == len(files(plans["hippocampus"][1])) == 1
    assert files(changed) != files(plans["hippocampus"][1])
    assert files(plans["paper"][1]) == set()


MISTAKES = {
    "misspelt key": (
        "training={epoch: 3}",
        "config: training.epoch is not a key; did you mean training.epochs?",
    ),
    "unknown task": (
        "tasks=[Task04_Hipocampus]",
        "config: tasks[0]: 'Task04_Hipocampus' is unknown; did you mean Task04_Hippocampus?",
    ),
    "fold 5": ("folds=[5]", "config: folds: Task04_Hippocampus has the folds 0 to 4, not 5"),
    "two equal arms": (
        "arms={random: {trainer: nnUNetTrainerConstantPatch}}",
        "config: arms.random: identical to arms.constant; change its parameters",
    ),
}


@pytest.mark.parametrize(("change", "line"), MISTAKES.values(), ids=MISTAKES)
@pytest.mark.parametrize("dry", [["-n"], ["--cores", "1"]], ids=["dry-run", "run"])
def test_a_mistake_in_the_configuration_is_one_line(tree, dry, change, line):
    arguments = [*dry, "--configfile", "config/studies/hippocampus.yaml", "--config", change]
    run = dry_run(tree, *arguments[1:]) if "-n" in dry else quick_snakemake(tree, *arguments)
    assert run.returncode != 0
    assert run.stdout == ""
    assert said(run.stderr) == [line]
    assert not (tree / "results").exists()


def test_the_bench_prepares_its_tasks_and_trains_no_arm_of_a_study(tree):
    tasks = "tasks=[Task99_BrainTissue,Task04_Hippocampus]"
    jobs, _ = plan(
        tree,
        *("--configfile", "config/tools/bench.yaml", "--config", tasks),
        *("--", "results/bench/bench.md", "results/bench/loading.md"),
    )
    assert jobs["bench_trainers"] == jobs["bench_loading"] == 1
    assert jobs["preprocess_task"] == 2
    assert "train_fold" not in jobs


def test_a_sweep_of_another_task_is_its_sibling_and_what_differs(tree, tmp_path):
    files = ("config/studies/budget_sweep.yaml", "config/studies/budget_sweep_acdc.yaml")
    (tmp_path / "dataset.json").write_text("{}")
    own = f"own_tasks={{Task142_ACDC: {{folder: {tmp_path}}}}}"
    jobs, text = plan(tree, "budget_sweep", "--configfile", *files, "--config", own)
    assert jobs["train_fold"] == 3 * 15
    assert {task for task, *_ in trainings(text)} == {"Task142_ACDC"}


def test_an_arm_s_own_length_is_that_of_its_training(tree):
    arguments = ("--configfile", "config/studies/budget_sweep.yaml", "--", "budget_sweep")
    jobs, _ = plan(tree, *arguments)
    assert jobs["train_fold"] == 3 * 15
    assert jobs["plot_budget_sweep"] == jobs["measure_budgets"] == 1
    probe = (
        "import sys\n"
        "for arm in config['arms']:\n"
        "    length = STUDY.training(arm)\n"
        "    print(arm, length['epochs'], length['iterations_per_epoch'])\n"
        "sys.exit(3)"
    )
    (tree / "probe.smk").write_text(f'include: "{ROOT}/Snakefile"\n{probe}\n')
    run = dry_run(
        tree, "-s", tree / "probe.smk", "--configfile", "config/studies/budget_sweep.yaml"
    )
    assert "constant_660 220 3\n" in run.stdout
    assert "low_frequency_1800 150 12\n" in run.stdout


def test_without_a_gpu_the_cores_are_the_limit_of_trainings(tree, monkeypatch):
    """One training runs per GPU; on a machine without GPUs, one at a time would be too few."""
    probe = "import sys; print('LIMITS', dict(workflow.global_resources)); sys.exit(3)"
    (tree / "limits.smk").write_text(f'include: "{ROOT}/Snakefile"\n{probe}\n')
    arguments = ("-s", tree / "limits.smk", "--configfile", "config/studies/budget_sweep.yaml")
    assert 'Resource("gpu", 2)' in dry_run(tree, *arguments, "--resources", "gpu=2").stdout
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = dry_run(tree, *arguments).stdout
    assert "LIMITS" in found
    assert '"gpu"' not in found


@pytest.mark.parametrize("budget", [False, True])
def test_a_search_begins_with_its_forecast(tree, budget):
    """The jobs after the first part are known only once it is decided."""
    limit = ["--config", "budget={gpu_hours: 5}"] if budget else []
    jobs, text = plan(
        tree, "search_curriculum", "--configfile", "config/studies/low_frequency.yaml", *limit
    )
    assert jobs["forecast_search_study"] == 1
    assert jobs.get("check_search_budget", 0) == budget
    assert jobs["choose_frequencies"] == 5
    assert "train_fold" not in jobs
    assert "checkpoint jobs" in text


def test_a_trial_of_a_search_is_trained_as_an_arm(tree):
    run = "results/low_frequency/runs/Task99_BrainTissue/search_3of7_1_1_1_1/fold_0/run.json"
    _, text = plan(tree, run, "--configfile", "config/studies/low_frequency.yaml")
    assert trainings(text) == {("Task99_BrainTissue", "search_3of7_1_1_1_1", 0)}


SCALE_SPACE = ("--configfile", "config/studies/scale_space.yaml")


def test_a_scale_space_study_evaluates_every_model_once(tree):
    jobs, text = plan(tree, "scale_space", *SCALE_SPACE)
    # Two arms at six scale factors, four controls at their own; nnU-Net's own network is not baked.
    assert (jobs["bake_model"], jobs["evaluate_scale"], jobs["train_fold"]) == (16, 17, 7)
    assert (jobs["evaluate_transfer"], jobs["plot_transfer"]) == (9, 1)
    assert jobs["run_scale_space_notebook"] == 1
    assert (jobs["tabulate_scales"], jobs["compare_scales"], jobs["plot_scales"]) == (1, 1, 1)
    evaluated = re.findall(r"Evaluating Task04_Hippocampus, (\w+), fold 0 at (\S+)", text)
    assert Counter(arm for arm, _ in evaluated)["scale_space"] == 6
    assert {("constant", "planned"), ("fixed_025", "0.25"), ("stochastic", "0.5")} <= set(evaluated)
    fewer = "scale_space={scales: [0.25, 0.7], transfer: {scales: []}}"
    jobs, _ = plan(tree, "scale_space", *SCALE_SPACE, "--config", fewer)
    assert jobs["evaluate_scale"] == 9
    assert not {"evaluate_transfer", "tabulate_transfer", "plot_transfer"} & set(jobs)


def test_a_model_is_baked_for_a_scale_factor_without_any_evaluation(tree):
    jobs, text = plan(tree, "bake", *SCALE_SPACE, "--config", "scale_factor=0.35")
    assert (jobs["bake_model"], jobs["train_fold"]) == (1, 1)
    assert "evaluate_scale" not in jobs
    assert "Baking scale_space for the scale factor 0.35, Dataset004_Hippocampus" in text


def test_the_cheapest_good_enough_model_needs_the_evaluation(tree):
    jobs, text = plan(tree, "bake", *SCALE_SPACE)
    assert (jobs["evaluate_scale"], jobs["tabulate_scales"]) == (17, 1)
    assert "evaluate_transfer" not in jobs
    assert text.count("Baking scale_space for the scale factor chosen") == 1


def test_a_study_without_a_hypernetwork_has_nothing_to_bake(tree):
    run = dry_run(tree, "bake")
    assert run.returncode != 0
    assert "no arm of this study is a scale-space hypernetwork" in run.stderr + run.stdout
