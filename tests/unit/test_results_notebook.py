"""The results notebook on a MADE-UP study: claim, evidence, cost, how it was made."""

from pathlib import Path

import nbformat
import pandas as pd
import pytest
from PIL import Image

from helpers.fake_study import FakeStudy
from workflow_scripts.common.files import read_csv
from workflow_scripts.evaluation.assess_significance import assess
from workflow_scripts.evaluation.check_claims import check_claims, reference_sentence, to_markdown
from workflow_scripts.evaluation.claims import read_claims
from workflow_scripts.evaluation.collect_results import collect_results
from workflow_scripts.evaluation.compare_arms import compare_arms
from workflow_scripts.evaluation.decide_arms import decide_arms
from workflow_scripts.evaluation.measure_targets import measure_targets
from workflow_scripts.evaluation.measure_targets import to_markdown as targets_markdown
from workflow_scripts.evaluation.tabulate_overview import overview
from workflow_scripts.evaluation.tabulate_overview import to_markdown as overview_markdown
from workflow_scripts.evaluation.verdict_texts import ranks_markdown
from workflow_scripts.evaluation.verdict_texts import to_markdown as verdicts_markdown
from workflow_scripts.report.run_notebook import execute, render

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "config"
TASKS = ("Task04_Hippocampus", "Task99_BrainTissue")


def page_of(study, without_nsd=()):
    """Return the rendered notebook and the text of its outputs."""
    study.write()
    for key, folder in study.folders().items():
        if key[0] in without_nsd:
            path = folder / "surface.csv"
            pd.read_csv(path).assign(nsd=None, tolerance_mm=None).to_csv(path, index=False)
    names = ("runs", "cases", "energy", "epochs", "comparison", "significance")
    paths = {name: study.root / f"{name}.csv" for name in names}
    collect_results(
        study.folders(), {name: paths[name] for name in ("runs", "cases", "energy", "epochs")}
    )
    printed = ("comparison", "overview", "claims", "targets")
    paths |= {f"{name}_md": study.root / f"{name}.md" for name in printed}
    outputs = {"csv": paths["comparison"], "md": paths["comparison_md"], "tex": study.root / "tex"}
    arms, tasks = list(study.arms), list(study.tasks)
    compare_arms(paths["runs"], paths["cases"], outputs, "constant", tasks, arms)
    cases = pd.read_csv(paths["cases"], dtype={"case": str, "label": str})
    assess(cases, "constant", tasks, arms, seed=1).to_csv(paths["significance"], index=False)
    table = overview(read_csv(paths["comparison"]), read_csv(paths["significance"]))
    paths["overview_md"].write_text(overview_markdown(table, ""))
    content = read_claims(CONFIG / "published/claims.yaml", CONFIG / "schemas/claims.schema.yaml")
    published = pd.read_csv(CONFIG / "published/nnunet_runs.tsv", sep="\t")
    claims, beside = check_claims(pd.read_csv(paths["runs"]), published, content)
    paths["claims_md"].write_text(to_markdown(claims, reference_sentence(beside)))
    runs, epochs = pd.read_csv(paths["runs"]), pd.read_csv(paths.pop("epochs"))
    targets = measure_targets(epochs, runs, "constant", tasks, arms)
    paths["targets_md"].write_text(targets_markdown(targets))
    read = {name: read_csv(paths[name]) for name in ("runs", "cases", "comparison")}
    read["epochs"] = epochs
    choice = {"margin": 0.01, "task_margins": {}, "cost": "time"}
    verdicts, ranks = decide_arms(read, "constant", tasks, arms, choice, seed=1)
    paths |= {f"{name}_md": study.root / f"{name}.md" for name in ("verdicts", "ranks")}
    paths["verdicts_md"].write_text(verdicts_markdown(verdicts, runs, "constant", "time"))
    paths["ranks_md"].write_text(ranks_markdown(ranks))
    for figure in (
        "decision",
        "differences",
        "dice",
        "cost",
        "convergence",
        "profiles",
        "predictions",
    ):
        paths[figure] = study.root / f"{figure}.png"
        Image.new("RGB", (8, 8), "white").save(paths[figure])
    done, page = study.root / "results.ipynb", study.root / "results.html"
    parameters = {"study": "fake", **{name: str(path) for name, path in paths.items()}}
    execute(ROOT / "notebooks/results.ipynb", parameters, done, study.root / "failed.ipynb")
    render(done, page, "fake: results")
    outputs = [
        output["data"].get("text/markdown", "")
        for cell in nbformat.read(done, as_version=4).cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "data" in output
    ]
    return page.read_text(), "\n".join(outputs)


@pytest.mark.parametrize("without", [(), (TASKS[0],)], ids=["nsd", "a task without nsd"])
def test_story_is_told_in_order(tmp_path, without):
    page, text = page_of(FakeStudy(tmp_path, tasks=TASKS, folds=(0, 1), cases=5), without)
    parts = ("Does it work", "Published claims", "Evidence", "Costs", "How it was made")
    places = [page.index(f">{part}") for part in parts]
    assert places == sorted(places)
    assert "– not enough evidence" in text
    assert "| mean " in text
    assert ("No NSD for Task04_Hippocampus" in text) == bool(without)
    tested = [line for line in text.splitlines() if line.startswith(("| Dice ", "| NSD "))]
    assert len(tested) == 4 + (2 if without else 4)
    assert "significantly higher on" in text
    assert "of 2 tasks" in text
    assert "| mean rank " in text
    assert "Every task by itself" in text


def test_the_page_begins_with_the_answer_and_what_it_rests_on(tmp_path):
    page, text = page_of(FakeStudy(tmp_path, folds=(0, 1), seeds=(1, 2, 3), cases=5))
    answer = text.split("\n")[0]
    assert answer.startswith("**")
    assert "This rests on 1 task, 2 folds × 3 seeds and 10 validation cases; a training" in answer
    places = [page.index(part) for part in ("This rests on", "data:image/png", "<li>", "Study ")]
    assert places == sorted(places), "answer, figure, a line for each arm, the study"
    assert "Every task by itself" not in text
    assert page.count("data:image/png") == 6, "no profiles of one task"


def test_reference_arm_alone(tmp_path):
    _, text = page_of(FakeStudy(tmp_path, arms=("constant",)))
    assert "nothing to compare yet" in text
    assert "nothing to test" in text


def test_few_cases_have_no_p_value(tmp_path):
    _, text = page_of(FakeStudy(tmp_path, folds=(0,)))
    assert "too few cases for a test" in text
    assert "too few cases, or equal ones, for a test of that" in text
