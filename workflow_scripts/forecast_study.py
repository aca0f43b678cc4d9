"""Forecast hours, energy and emissions of every training of a study, before any of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from log import redirect

REFERENCE_TRAINER = "nnUNetTrainerConstantPatch"
PUBLISHED_RUN = {
    "epochs": 1000,
    "iterations_per_epoch": 250,
    "validation_iterations_per_epoch": 50,
    "seed": None,
}
SUMS = ["train_tflop", "val_tflop", "final_tflop", "hours", "kwh", "kg_co2eq"]
COLUMNS = [
    *("task", "arm", "plan", "calibration", "patch_size", "batch_size", "folds", "stages"),
    *("iterations", *SUMS, "relative_to_reference"),
]


def find_plans(
    tasks: Sequence[str],
    own: Mapping[str, Path],
    published: Mapping[str, Any],
    configuration: str,
    overrides: Mapping[str, dict[str, Any]],
) -> dict[str, Any]:
    """Return the plan of each task with the study's overrides, or None: not planned yet.

    Args:
        tasks: of the study.
        own: nnU-Net's own plans of tasks that were planned here; they go first.
        published: plans by task, as far as they are those that the study would make.
        configuration: of the plans.
        overrides: by task.
    """
    from dataclasses import replace

    from forecast import read_plan
    from override_plans import override_plans

    found: dict[str, Any] = {}
    for task in tasks:
        plan = read_plan(own[task]) if task in own else published.get(task)
        if plan is not None:
            changed = override_plans(plan.plans, "forecast", configuration, overrides[task])
            plan = replace(plan, plans=changed)
        found[task] = plan
    return found


def forecast_rows(
    plans: Mapping[str, Any],
    arms: Mapping[str, Mapping[str, Any]],
    folds: Sequence[int],
    reference_arm: str,
    configuration: str,
    training: Mapping[str, Any],
    mirroring: bool,
    calibration: Any,
    kg_per_kwh: float,
) -> Any:
    """Return one row a task and arm with the columns `COLUMNS`, all sums over the folds.

    A task without a plan has rows without numbers. `kg_per_kwh` is that of the meter's kWh: carbon
    intensity; energies are multiplied by the power usage effectiveness before.
    """
    import pandas as pd

    from forecast import count_work
    from training import find_trainer

    rows = []
    for task, plan in plans.items():
        for arm, chosen in arms.items():
            row: dict[str, Any] = {"task": task, "arm": arm, "folds": len(folds)}
            rows.append(row | {"plan": "not planned yet"})
            if plan is None:
                continue
            work = count_work(
                plan,
                configuration,
                find_trainer(chosen["trainer"]),
                chosen["parameters"],
                {**training, "epochs": chosen.get("epochs") or training["epochs"]},
                folds,
                mirroring,
            )
            seconds, kwh = calibration.cost(task, work.steps, work.tflop, work.epochs)
            settings = plan.plans["configurations"][configuration]
            rows[-1] = row | {
                "plan": plan.source,
                "calibration": calibration.source,
                "patch_size": "x".join(str(int(n)) for n in settings["patch_size"]),
                "batch_size": settings["batch_size"],
                "stages": work.stages,
                "iterations": work.iterations,
                "train_tflop": work.train_tflop,
                "val_tflop": work.val_tflop,
                "final_tflop": work.final_tflop,
                "hours": seconds / 3600,
                "kwh": kwh,
                "kg_co2eq": kwh * kg_per_kwh,
            }
    table = pd.DataFrame(rows, columns=COLUMNS)
    whole = ["batch_size", "folds", "stages", "iterations"]
    table = table.astype(dict.fromkeys(whole, "Int64") | dict.fromkeys(SUMS, float))
    reference = table[table["arm"] == reference_arm].set_index("task")["hours"]
    table["relative_to_reference"] = table["hours"] / table["task"].map(reference)
    return table


def to_markdown(
    table: Any,
    study: str,
    reference_arm: str,
    training: Mapping[str, Any],
    calibration: Any,
    country: str,
    kg_per_kwh: float,
    pue: float,
) -> str:
    """Return the forecast on one screen: totals, arms, assumptions, error."""
    import textwrap

    from calibration import in_words
    from units import CARBON, ENERGY, TIME, number, pipe_table

    unplanned = list(dict.fromkeys(table.loc[table["hours"].isna(), "task"]))
    known = table[table["hours"].notna()]
    counts = [
        f"{n} {word}{'s' if n > 1 else ''}"
        for n, word in (
            (table["task"].nunique(), "task"),
            (table["arm"].nunique(), "arm"),
            (int(table["folds"].max()), "fold"),
        )
    ]
    lines = [
        f"**Forecast of the study {study}: {' × '.join(counts)}, "
        f"{training['epochs']} epochs × {training['iterations_per_epoch']} iterations**"
    ]
    if len(known):
        total = known[["hours", "kwh", "kg_co2eq"]].sum(skipna=False)
        days = f" ({number(total['hours'] / 24)} days)" if total["hours"] > 48 else ""
        lines.append(
            f"Total: {in_unit(3600 * total['hours'], TIME)}{days} of one device, "
            f"{in_unit(total['kwh'], ENERGY)}, {in_unit(total['kg_co2eq'], CARBON)}."
        )
        lines.append(pipe_table(arm_rows(known, reference_arm)))
    notes = []
    if unplanned:
        notes.append(
            f"Left out, as no plan is known yet: {', '.join(unplanned)}. Plan first (no GPU, but "
            "the data): `snakemake plans` with the same configuration, then `snakemake forecast`."
        )
    sources = known.groupby("plan", sort=False)["task"].unique()
    notes += [f"Plans {source}: {', '.join(tasks)}." for source, tasks in sources.items()]
    slow = 1000 * calibration.seconds_per_iteration
    notes += [
        f"Calibration: {calibration.source}. An iteration takes {number(slow)} ms + "
        f"{number(1000 * calibration.seconds_per_tflop)} ms a TFLOP, an epoch "
        f"{number(calibration.seconds_per_epoch)} s besides.",
        "Relative error of the hours: "
        + "; ".join(f"{what}: {in_words(values)}" for what, values in calibration.errors.items())
        + ".",
        *calibration.notes,
        "Included: training, the validation after each epoch, the final sliding-window validation "
        "(windows of the median case). Not included: preprocessing, set-up, lost work.",
        f"kg CO2eq: {number(1000 * kg_per_kwh)} g/kWh ({country}, codecarbon); power usage "
        f"effectiveness {pue:g}.",
        "Sums over the folds. Relative: hours against the arm "
        f"{reference_arm}; in brackets the range over the tasks.",
    ]
    lines.append(
        "\n".join(textwrap.fill(f"- {note}", 100, subsequent_indent="  ") for note in notes)
    )
    return "\n\n".join(lines) + "\n"


def in_unit(value: float, choices: Any) -> str:
    """Return a number with the unit that fits it."""
    import pandas as pd

    from units import number, unit

    name, scale = unit(pd.Series([value]), choices)
    return f"{number(value * scale)} {name}"


def arm_rows(known: Any, reference_arm: str) -> Any:
    """Return the printed table: a row an arm, sums over tasks and folds, all cells text."""
    import pandas as pd

    from units import CARBON, COMPUTATION, ENERGY, TIME, number, unit

    totals = known.groupby("arm", sort=False)[SUMS].sum(min_count=1)
    ranges = known.groupby("arm", sort=False)["relative_to_reference"].agg(["min", "max"])
    relative = totals["hours"] / totals.loc[reference_arm, "hours"]
    spread = [
        f" ({low:.2f}–{high:.2f})" if high - low > 0.005 else "" for low, high in ranges.to_numpy()
    ]
    rows = {"arm": list(totals.index)}
    costs = {
        "time": (3600 * totals["hours"], TIME),
        "energy": (totals["kwh"], ENERGY),
        "carbon": (totals["kg_co2eq"], CARBON),
        "work": (
            1000 * totals[["train_tflop", "val_tflop", "final_tflop"]].sum(axis=1),
            COMPUTATION,
        ),
    }
    for what, (values, choices) in costs.items():
        name, scale = unit(values, choices)
        rows[name] = [number(value * scale) for value in values]
        if what == "time":
            rows["relative"] = [f"{r:.2f}{s}" for r, s in zip(relative, spread, strict=True)]
    return pd.DataFrame(rows)


def published_work(published: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Return steps and TFLOP of one published run by task, with its validations."""
    from forecast import count_work
    from training import find_trainer

    trainer = find_trainer(REFERENCE_TRAINER)
    counted = {
        task: count_work(plan, "3d_fullres", trainer, {}, PUBLISHED_RUN, [0], mirroring=True)
        for task, plan in published.items()
    }
    return {task: (work.steps, work.tflop) for task, work in counted.items()}


if __name__ == "__main__":
    redirect(snakemake.log[0])
    import nnunet

    nnunet.configure(processes=1)
    from dataclasses import replace

    import pandas as pd

    import calibration
    from forecast import published_plans
    from run_record import write_csv

    params = snakemake.params
    listed = published_plans(Path(snakemake.input.plans))
    if params.calibration == "published":
        runs = pd.read_csv(snakemake.input.runs, sep="\t")
        fitted = calibration.published(runs, published_work(listed))
    else:
        fitted = calibration.measured([Path(path).parent for path in params.runs])
    pue = params.pue
    fitted = replace(
        fitted,
        kwh_per_second=fitted.kwh_per_second * pue,
        kwh_per_tflop=fitted.kwh_per_tflop * pue,
    )
    intensity = calibration.carbon_intensity(params.country)
    own = {task: Path(path) for task, path in params.own_plans.items()}
    found = find_plans(
        tasks=params.tasks,
        own={task: path for task, path in own.items() if path.is_file()},
        published={task: listed[task] for task in params.published},
        configuration=params.configuration,
        overrides=params.overrides,
    )
    table = forecast_rows(
        plans=found,
        arms=params.arms,
        folds=params.folds,
        reference_arm=params.reference_arm,
        configuration=params.configuration,
        training=params.training,
        mirroring=params.mirroring,
        calibration=fitted,
        kg_per_kwh=intensity,
    )
    write_csv(table, Path(snakemake.output.csv))
    Path(snakemake.output.md).write_text(
        to_markdown(
            table,
            study=snakemake.wildcards.study,
            reference_arm=params.reference_arm,
            training=params.training,
            calibration=fitted,
            country=params.country,
            kg_per_kwh=intensity,
            pue=pue,
        )
    )
