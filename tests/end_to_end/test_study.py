"""A tiny study: its outputs, what reruns, what survives a kill, and its use as a module."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

import nibabel
import pytest
from PIL import Image

from helpers.processes import PATIENCE
from helpers.quick_study import quick_snakemake
from helpers.tiny_study import ARMS, CONFIG, TASK, TRAINERS
from helpers.tree import dry_run, plan, snakemake, trainings, write_config

RUN_FILES = ["run.json", "epochs.csv", "stages.csv", "energy.csv", "summary.json", "surface.csv"]
TABLES = [
    *(f"{name}.csv" for name in ("runs", "cases", "epochs", "stages", "energy", "class_balance")),
    *(f"{name}.{kind}" for name in ("comparison", "overview") for kind in ("csv", "md", "tex")),
    *("significance.csv", "variance.csv", "targets.csv", "targets.md"),
    *("claims.csv", "claims.md", "reference_runs.csv"),
    *("verdicts.csv", "verdicts.md", "ranks.csv", "ranks.md"),
]
FIGURES = [
    "decision",
    "differences",
    "dice",
    "cost",
    "convergence",
    "profiles",
    "schedule",
    "patches",
    "class_balance",
    "predictions",
]
NOTEBOOKS = ["results", "curricula"]
PREPARED = {"make_demo_task", "extract_task", "convert_task", "fingerprint_task", "plan_task"}
PREPARED |= {"override_plans", "preprocess_task", "write_splits"}
FROM_LOOKS = {f"plot_{figure}": 1 for figure in FIGURES} | {
    "run_results_notebook": 1,
    "run_curricula_notebook": 1,
    "all": 1,
}

OTHER_WORKFLOW = """
configfile: "study.yaml"


module patch_curricula:
    snakefile:
        "{snakefile}"
    config:
        config["curricula"]


use rule * from patch_curricula as pgps_*


rule summary:
    default_target: True
    input:
        forecast="results/tiny/forecast/within_budget.json",
        figure="results/tiny/figures/dice.png",
        table="results/tiny/tables/comparison.md",
    output:
        "summary.md",
    shell:
        "cp {{input.table}} {{output}}"
"""

pytestmark = pytest.mark.slow


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_outputs_are_those_of_the_contract_and_no_others(study):
    wanted = {f"runs/{TASK}/{arm}/fold_0/{name}" for arm in ARMS for name in RUN_FILES}
    wanted |= {f"tables/{name}" for name in TABLES}
    wanted |= {f"figures/{name}.{kind}" for name in FIGURES for kind in ("svg", "png")}
    wanted |= {f"notebooks/{name}.{kind}" for name in NOTEBOOKS for kind in ("ipynb", "html")}
    found = {
        str(path.relative_to(study.results))
        for part in ("runs", "tables", "figures", "notebooks")
        for path in (study.results / part).rglob("*")
        if path.is_file()
    }
    assert found == wanted
    assert {path.name for path in study.results.iterdir()} == {
        *("forecast", "runs", "tables", "figures", "notebooks", "nnunet")
    }


def test_nothing_else_is_left_in_the_work_tree(study):
    assert study.made == {"results", "resources", "logs", ".snakemake"}
    assert not (study.folder / "resources/msd" / TASK).exists()
    assert [path for path in study.folder.rglob("*.part*") if path.is_file()] == []


@pytest.mark.parametrize("arm", ARMS)
def test_a_run_records_its_epochs_energy_and_dice(study, arm):
    folder = study.results / f"runs/{TASK}/{arm}/fold_0"
    epochs = rows(folder / "epochs.csv")
    assert [row["epoch"] for row in epochs] == ["0", "1", "2"]
    assert {row["attempt"] for row in epochs} == {"1"}
    assert all(float(row["kwh"]) > 0 and float(row["gflop"]) > 0 for row in epochs)
    assert epochs[-1]["patch_size"] in ("16x24x16", "random")

    record = json.loads((folder / "run.json").read_text())
    assert (record["task"], record["arm"], record["fold"]) == (TASK, arm, 0)
    assert (record["epochs"], record["attempts"], record["cases"]) == (3, 1, 2)
    assert record["patch_size"] == [16, 24, 16]
    assert 0 < record["dice_foreground_mean"] < 1
    summary = json.loads((folder / "summary.json").read_text())
    assert record["dice_foreground_mean"] == summary["foreground_mean"]["Dice"]
    assert (study.folder / record["results_folder"] / "checkpoint_final.pth").is_file()

    energy = rows(folder / "energy.csv")
    assert {row["phase"] for row in energy} >= {"setup", "training", "validation"}
    assert [row["error"] for row in energy if row["error"]] == []
    seconds = sum(float(row["seconds"]) for row in energy if row["phase"] == "training")
    assert seconds == pytest.approx(record["training_seconds"])
    for row in energy:
        # Energy and time must belong to the same work, so the mean power must be plausible.
        assert float(row["kwh"]) * 3.6e6 / float(row["seconds"]) < 500, row


def test_arms_share_folds_plans_and_length(study):
    records = [
        json.loads((study.results / f"runs/{TASK}/{arm}/fold_0/run.json").read_text())
        for arm in ARMS
    ]
    for key in ("plans_hash", "splits_hash", "epochs", "iterations_per_epoch", "seed", "versions"):
        assert all(record[key] == records[0][key] for record in records), key
    sizes = [
        {row["patch_size"] for row in rows(study.results / f"runs/{TASK}/{arm}/fold_0/epochs.csv")}
        for arm in ARMS
    ]
    assert sizes[0] == {"16x24x16"}
    assert len(sizes[1]) == 3


def test_tables_compare_the_arms(study):
    text = (study.results / "tables/comparison.md").read_text()
    for arm in ARMS:
        assert re.search(rf"^\| {arm} +\|", text, re.M), arm
    assert {row["arm"] for row in rows(study.results / "tables/runs.csv")} == set(ARMS)
    assert len(rows(study.results / "tables/epochs.csv")) == len(ARMS) * 3
    assert len(rows(study.results / "tables/cases.csv")) == len(ARMS) * 2 * 2  # cases, labels


@pytest.mark.parametrize("figure", FIGURES)
def test_figures_show_something(study, figure):
    path = study.results / f"figures/{figure}"
    image = Image.open(path.with_suffix(".png")).convert("L")
    assert min(image.size) > 200
    assert len(image.getcolors()) > 10
    drawing = ElementTree.parse(path.with_suffix(".svg")).getroot()
    assert len(list(drawing.iter("{http://www.w3.org/2000/svg}path"))) > 10


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_pages_need_no_network(study, notebook):
    page = (study.results / f"notebooks/{notebook}.html").read_text()
    assert "<img" in page
    assert len(page) > 50_000
    sources = re.findall(r"""<[^>]*\bsrc=["']([^"']{0,40})""", page)
    assert [source for source in sources if not source.startswith("data:")] == []
    assert re.findall(r"<link\b|@import|\burl\(\s*['\"]?https?:", page) == []
    assert "Traceback" not in page


def test_progress_is_on_the_terminal(study):
    for arm in ARMS:
        for line in ("epoch 3/3, now the final validation", "validation case 2/2, done"):
            assert f"{TASK} {arm} fold 0: {line}" in study.run.stderr, arm


def test_a_second_run_has_nothing_to_do(study):
    assert plan(study.folder, *study.arguments)[0] == {}


def test_other_looks_redraw_figures_and_their_pages_only(study):
    path = study.clone / "config/plotting.yaml"
    before = path.read_text()
    try:
        path.write_text(before.replace("dpi: 200", "dpi: 100"))
        assert path.read_text() != before
        jobs, _ = plan(study.folder, *study.arguments)
    finally:
        path.write_text(before)
    assert jobs == FROM_LOOKS


@pytest.mark.parametrize("name", ["plot_cost.py", "../common/formatting.py"])
def test_other_code_draws_its_figure_again(study, name):
    """Applies to a rule that inherits its `script:`, and to a module that the script imports."""
    path = study.clone / "workflow_scripts/figures" / name
    before, dates = path.read_text(), path.stat()
    try:
        path.write_text(before + "# more\n")
        jobs, _ = plan(study.folder, *study.arguments)
    finally:
        path.write_text(before)
        os.utime(path, ns=(dates.st_atime_ns, dates.st_mtime_ns))
    assert jobs["plot_cost"] == jobs["run_results_notebook"] == 1
    assert not {"train_fold", "plot_schedule"} & set(jobs)


def test_a_file_that_is_only_touched_reruns_nothing(study):
    """Snakemake compares the content of small files, so a new date alone is no change.

    `--max-checksum-file-size 0` makes it compare dates. No profile sets it: switching a branch back
    and forth changes the dates of files, and would rerun all rules that read them.
    """
    path = study.clone / "config/plotting.yaml"
    path.touch()
    assert plan(study.folder, *study.arguments)[0] == {}
    by_date, _ = plan(study.folder, *study.arguments, "--max-checksum-file-size", 0)
    assert by_date == FROM_LOOKS


def test_one_more_fold_trains_that_fold_only(study):
    config = write_config(study.folder, "tiny_folds", study.config, folds=[0, 1])
    jobs, text = plan(study.folder, *study.workflow, "--configfile", config)
    assert trainings(text) == {(TASK, arm, 1) for arm in ARMS}
    assert jobs["train_fold"] == len(ARMS)
    assert PREPARED.isdisjoint(jobs)


def test_one_more_arm_trains_that_arm_only(study):
    arms = {"again": {"trainer": "nnUNetTrainer"}}
    config = write_config(study.folder, "tiny_arms", study.config, arms=arms)
    _, text = plan(study.folder, *study.workflow, "--configfile", config)
    assert trainings(text) == {(TASK, "again", 0)}


def test_another_study_shares_the_preprocessed_data(study):
    config = write_config(study.folder, "other", study.config, study="other")
    jobs, text = plan(study.folder, *study.workflow, "--configfile", config)
    assert trainings(text) == {(TASK, arm, 0) for arm in ARMS}
    assert PREPARED.isdisjoint(jobs)


def test_other_overrides_change_the_plans_but_preprocess_nothing(study):
    overrides = {"overrides": {"all": {"batch_size": 3}}}
    config = write_config(study.folder, "batch", study.config, study="batch", planning=overrides)
    jobs, _ = plan(study.folder, *study.workflow, "--configfile", config)
    assert PREPARED & set(jobs) == {"override_plans"}


@pytest.mark.ci
def test_a_second_seed_is_trained_beside_the_first(study):
    """The first seed's training stays; the tables are made from both."""
    short = {**study.config, "arms": {arm: study.config["arms"][arm] for arm in ARMS[:2]}}
    short["training"] = {**study.config["training"], "epochs": 1, "seed": 3}
    alone = write_config(study.folder, "seeds", short, study="seeds")
    run = quick_snakemake(
        study.folder, *study.workflow, "tables", "--cores", 2, "--configfile", alone
    )
    assert run.returncode == 0, run.stderr
    seeds = {"seeds": [3, 7]}
    both = write_config(study.folder, "seeds", short, study="seeds", **seeds)
    arguments = [*study.workflow, "tables", "--cores", 2, "--configfile", both]
    assert plan(study.folder, *arguments)[0]["train_fold"] == 2
    run = quick_snakemake(study.folder, *arguments)
    assert run.returncode == 0, run.stderr
    assert plan(study.folder, *arguments)[0] == {}
    results = study.folder / "results/seeds"
    assert {path.name for path in (results / f"runs/{TASK}/{ARMS[0]}").iterdir()} == {
        *("fold_0", "fold_0_seed_7")
    }
    runs = rows(results / "tables/runs.csv")
    assert [row["seed"] for row in runs] == [str(seed) for seed in seeds["seeds"]] * 2
    assert runs[0]["dice_foreground_mean"] != runs[1]["dice_foreground_mean"]
    assert len({row["results_folder"] for row in runs}) == 4
    variance = rows(results / "tables/variance.csv")
    assert all(float(row["std_retraining"]) >= 0 for row in variance)
    assert "1 fold, 2 validation cases, 2 seeds" in (results / "tables/comparison.md").read_text()


@pytest.mark.ci
def test_a_killed_training_fails_and_keeps_its_epochs(killed):
    assert killed.first.returncode != 0
    assert "SIGKILL" in killed.first.stderr
    assert len(killed.after_first) >= 2


@pytest.mark.ci
def test_after_a_kill_of_snakemake_the_folder_is_unlocked_by_hand(killed):
    """Snakemake cannot tell a dead lock from a live one, so it asks for `--unlock`."""
    assert killed.refused.returncode != 0
    assert "--unlock" in killed.refused.stderr
    assert "Traceback" not in killed.refused.stderr
    assert killed.unlocked.returncode == 0


@pytest.mark.ci
def test_a_killed_training_goes_on_where_it_was(killed):
    assert killed.last.returncode == 0, killed.last.stderr
    ledger = [json.loads(line) for line in killed.ledger.read_text().splitlines()]
    attempts = [entry for entry in ledger if entry["entry"] == "attempt"]
    assert [entry["attempt"] for entry in attempts] == [1, 2, 3]
    first, second = len(killed.after_first), len(killed.after_second)
    # The epoch of the kill may be trained again, but never one with a checkpoint.
    assert attempts[0]["resumed_at"] == 0
    assert first - 1 <= attempts[1]["resumed_at"] <= first
    assert attempts[2]["resumed_at"] > attempts[1]["resumed_at"]
    assert second - 2 <= attempts[2]["resumed_at"] <= second
    epochs = rows(killed.run_folder / "epochs.csv")
    assert [int(row["epoch"]) for row in epochs] == list(range(10))
    assert {row["attempt"] for row in epochs} == {"1", "2", "3"}


@pytest.mark.ci
def test_the_energy_of_every_attempt_is_kept(killed):
    energy = rows(killed.run_folder / "energy.csv")
    training = [row for row in energy if row["phase"] == "training"]
    assert {row["attempt"] for row in training} == {"1", "2", "3"}
    assert all(float(row["kwh"]) > 0 for row in energy)
    assert [row["attempt"] for row in energy if row["phase"] == "validation"] == ["3"]
    record = json.loads((killed.run_folder / "run.json").read_text())
    assert record["attempts"] == 3
    assert record["total_kwh"] == pytest.approx(sum(float(row["kwh"]) for row in energy))
    kept = sum(float(row["kwh_kept"]) for row in training)
    assert record["training_kwh"] == pytest.approx(kept)
    assert record["training_kwh"] < record["total_kwh"]


@pytest.mark.ci
def test_a_finished_training_of_other_length_is_refused_and_kept(study, killed, tmp_path):
    """The difference is named before any job starts, and no file is deleted."""
    arguments = [
        *killed.arguments[:4],
        "--configfile",
        write_config(study.folder, "longer", killed.config, training={"epochs": 11}),
        *killed.arguments[6:],
    ]
    copy = shutil.copytree(killed.run_folder, tmp_path / "copy")
    run = snakemake(study.folder, *arguments)
    assert run.returncode != 0
    (error,) = [line for line in run.stderr.splitlines() if line.startswith("Error: ")]
    assert "the study killed has 1 training " in error
    assert "epochs was 10 and is now 11" in run.stderr
    assert "Job stats" not in run.stdout
    for path in copy.iterdir():
        assert (killed.run_folder / path.name).read_bytes() == path.read_bytes(), path.name


def test_stock_nnunet_predicts_with_the_model(study, tmp_path):
    arm = "low_frequency"  # the trainer class that differs most from nnU-Net's
    record = json.loads((study.results / f"runs/{TASK}/{arm}/fold_0/run.json").read_text())
    images = study.folder / f"resources/nnUNet_raw/{record['dataset']}/imagesTr"
    (tmp_path / "in").mkdir()
    image = Path(shutil.copy(images / "brain_000_0000.nii.gz", tmp_path / "in"))
    own = {key: value for key, value in os.environ.items() if not key.startswith("nnUNet")}
    variables = {
        "nnUNet_raw": "resources/nnUNet_raw",
        "nnUNet_preprocessed": "resources/nnUNet_preprocessed",
        "nnUNet_results": f"results/tiny/nnunet/{arm}",
        "nnUNet_extTrainer": study.clone / "workflow_scripts/trainers",
    }
    run = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("nnUNetv2_predict")),),
            *("-i", tmp_path / "in", "-o", tmp_path / "out", "-d", record["dataset"]),
            *("-tr", record["trainer"], "-p", record["plans"], "-c", record["configuration"]),
            *("-f", "0", "-device", "cpu", "--disable_tta", "-npp", "0", "-nps", "0"),
        ],
        cwd=tmp_path,
        env=own | {name: str(study.folder / path) for name, path in variables.items()},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    label = nibabel.load(tmp_path / "out/brain_000.nii.gz")
    assert label.shape == nibabel.load(image).shape
    assert set(label.get_fdata().ravel()) <= {0, 1, 2}


def test_models_for_nnunet_alone_have_a_card(study):
    run = quick_snakemake(study.folder, *study.arguments, "--", "export_models")
    try:
        assert run.returncode == 0, run.stdout + run.stderr
        assert {path.name for path in (study.results / "models").iterdir()} == set(ARMS)
        for arm in ARMS:
            (archive,) = (study.results / f"models/{arm}").glob("*/*.zip")
            with zipfile.ZipFile(archive) as content:
                (name,) = [name for name in content.namelist() if name.endswith("/card.md")]
                card = content.read(name).decode()
            assert f"| Study, arm, seed | tiny, {arm}, " in card
            assert f"| Trainer | {TRAINERS[arm]} |" in card
            for fact in (
                "| Dice, fold 0 | 0.",
                " kWh, ",
                "| ICBM 2009a template",
                "| Fonov et al.",
            ):
                assert fact in card
    finally:
        shutil.rmtree(study.results / "models", ignore_errors=True)


def test_the_report_builds(study):
    run = quick_snakemake(study.folder, *study.arguments, "--report", "report.zip")
    assert run.returncode == 0, run.stderr
    with zipfile.ZipFile(study.folder / "report.zip") as archive:
        names = archive.namelist()
        page = archive.read("report/report.html").decode()
    for name, text in (("results", "Open the answer"), ("curricula", "What each arm does")):
        path = f"results/tiny/notebooks/{name}.html"
        link = rf"<a [^<>]*results\[&#34;{re.escape(path)}&#34;\][^<>]*><b>{text}</b></a>"
        description = page.partition("var workflow_desc = ")[2].partition("</script>")[0]
        assert re.search(link, json.loads(description.strip().rstrip(";"))), name
    for wanted in ("dice.png", "predictions.png", "results.html", "curricula.html"):
        assert any(name.endswith(wanted) for name in names), wanted


@pytest.fixture(scope="module")
def other(study, tmp_path_factory):
    """The folder of another workflow that uses this one as a module, with its summary made.

    With a budget, trainings wait for a Snakemake checkpoint, whose name differs here. The training
    itself is that of the study: its job finds it finished, and writes the records.
    """
    folder = tmp_path_factory.mktemp("other")
    (folder / "Snakefile").write_text(OTHER_WORKFLOW.format(snakefile=study.clone / "Snakefile"))
    (folder / "resources").symlink_to(study.folder / "resources")
    trained = "results/tiny/nnunet/progressive"
    shutil.copytree(study.folder / trained, folder / trained)
    arms = {"progressive": {"trainer": TRAINERS["progressive"]}}
    config = {**CONFIG, "arms": arms, "reference_arm": "progressive"}
    config["training"] = CONFIG["training"] | {"device": "auto"}  # a CPU's time is unknown
    write_config(folder, "study", {"curricula": {**config, "budget": {"gpu_hours": 1000}}})
    run = quick_snakemake(folder, "--cores", "2")
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


def test_as_a_module_the_study_is_made_in_the_other_s_folder(study, other):
    assert {path.name for path in other.iterdir()} == {
        *("Snakefile", "study.yaml", "summary.md"),
        *("results", "resources", "logs", ".snakemake"),
    }
    assert "| progressive" in (other / "summary.md").read_text()
    with (other / "results/tiny/tables/runs.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["task"], row["arm"], row["fold"]) == (TASK, "progressive", "0")
    name = f"runs/{TASK}/progressive/fold_0/epochs.csv"
    made, before = (folder / "results/tiny" / name for folder in (other, study.folder))
    assert made.read_text() == before.read_text(), "nothing was trained again"
    for name in ("figures/dice.png", "forecast/within_budget.json"):
        assert (other / "results/tiny" / name).stat().st_size > 0


def test_as_a_module_a_second_run_has_nothing_to_do(other):
    assert plan(other)[0] == {}


def test_as_a_module_all_its_rules_are_planned(other):
    jobs, _ = plan(other, "pgps_all")
    wanted = {f"pgps_plot_{name}" for name in FIGURES} - {"pgps_plot_dice"}
    wanted |= {"pgps_run_results_notebook", "pgps_run_curricula_notebook", "pgps_check_claims"}
    assert wanted <= set(jobs)


def test_as_a_module_a_mistake_is_told_in_the_same_words(other):
    run = dry_run(other, "--config", "curricula={folds: [7]}")
    assert run.returncode != 0
    assert f"config: folds: {TASK} has the folds 0 to 4, not 7" in run.stderr


# --- the user's environment

HOSTILE_VARIABLES = {
    "LC_ALL": "C",
    "LANG": "de_DE.ISO-8859-1",
    "LANGUAGE": "de",
    "PYTHONWARNINGS": "error",
    "PYTHONIOENCODING": "latin-1",
    "TQDM_MININTERVAL": "often",
    "CODECARBON_CLOUD_REGION": "mars",
    "MPLBACKEND": "module://nothing",
    "JUPYTER_CONFIG_PATH": "/nowhere",
    "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",
    "nnUNet_wandb_enabled": "perhaps",
}
HOSTILE_FILES = {
    ".codecarbon.config": "[codecarbon]\ncloud_provider = aws\ncloud_region = us-east-1\n",
    ".config/matplotlib/matplotlibrc": "lines.linewidth: 20\nsavefig.bbox: tight\nfont.size: 30\n",
    ".ipython/profile_default/startup/00.py": "raise SystemExit('the startup file of a user')\n",
    ".ipython/profile_default/ipython_config.py": "1 / 0\n",
    ".jupyter/jupyter_config.py": "1 / 0\n",
    ".local/share/jupyter/kernels/python3/kernel.json": "{}",
    ".local/share/jupyter/nbconvert/templates/basic/conf.json": "{",
}


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for kind in ("tables", "figures")
        for path in sorted((folder / kind).iterdir())
    }


@pytest.fixture
def hostile(tmp_path):
    """Return the environment of a user whose home folder is full of conflicting settings."""
    home = tmp_path / "a home with spaces"
    for name, content in HOSTILE_FILES.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    temporary = Path("/dev/shm") if Path("/dev/shm").is_dir() else tmp_path
    return HOSTILE_VARIABLES | {"HOME": str(home), "TMPDIR": str(temporary)}


@pytest.mark.ci
def test_tables_and_figures_are_the_same_bytes(study, hostile):
    before = contents(study.results)
    for name in ("tables", "figures", "notebooks"):
        shutil.copytree(study.results / name, study.results / f"{name}_before")
        shutil.rmtree(study.results / name)
    (study.folder / "matplotlibrc").write_text("lines.linewidth: 20\n")
    mask = os.umask(0o077)
    try:
        run = snakemake(study.folder, *study.arguments, env=hostile)
        assert run.returncode == 0, run.stdout + run.stderr
        after = contents(study.results)
        assert before.keys() == after.keys()
        assert [str(name) for name in before if before[name] != after[name]] == []
        assert (study.results / "notebooks/results.html").stat().st_size > 100_000
        assert "train_fold" not in run.stdout, "nothing was trained again"
    finally:
        os.umask(mask)
        (study.folder / "matplotlibrc").unlink()
        for name in ("tables", "figures", "notebooks"):
            shutil.rmtree(study.results / f"{name}_before")
