"""Write the folds of a task once, before any training, so that all arms share them."""

from pathlib import Path

from nnunetv2.utilities.crossval_split import generate_crossval_split

from workflow_scripts.common.console import redirect
from workflow_scripts.common.errors import UserError
from workflow_scripts.common.files import read_json, write_json
from workflow_scripts.common.nnunet_setup import FOLDS, SPLITS

SEED = 12345


def write_splits(cases: list[str]) -> list[dict[str, list[str]]]:
    """Return the five folds that nnU-Net's trainer would write (2.8.1, `do_split`).

    Raises:
        UserError: there are fewer cases than folds.
    """
    if len(cases) < FOLDS:
        raise UserError(f"{len(cases)} cases cannot be split into {FOLDS} folds")
    return generate_crossval_split(sorted(cases), seed=SEED, n_splits=FOLDS)


def find_splits(raw: Path) -> list[dict[str, list[str]]]:
    """Return the folds imported with a dataset, or those that nnU-Net would draw."""
    splits = raw / SPLITS
    if splits.is_file():
        return read_json(splits, kind=list)
    ending = read_json(raw / "dataset.json")["file_ending"]
    labels = (raw / "labelsTr").glob(f"*{ending}")
    return write_splits([label.name[: -len(ending)] for label in labels])


if __name__ == "__main__":
    redirect(snakemake.log[0])

    folds = find_splits(Path(snakemake.input.dataset).parent)
    # Not from params, since other studies may train other folds of the same task.
    if lacking := [fold for fold in snakemake.config["folds"] if fold >= len(folds)]:
        raise UserError(
            f"folds: {snakemake.wildcards.dataset} has the folds 0 to {len(folds) - 1}, not "
            f"{', '.join(map(str, lacking))}"
        )
    write_json(folds, Path(snakemake.output.splits))
