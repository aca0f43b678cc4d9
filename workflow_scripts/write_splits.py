"""Write the five folds once, before any training, so that all arms share them."""

import json
from pathlib import Path

from log import UserError, redirect

FOLDS = 5
SEED = 12345


def write_splits(cases: list[str]) -> list[dict[str, list[str]]]:
    """Return the five folds that nnU-Net's trainer would write (2.8.1, `do_split`).

    Raises:
        UserError: fewer cases than folds.
    """
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    if len(cases) < FOLDS:
        raise UserError(f"{len(cases)} cases cannot be split into {FOLDS} folds")
    return generate_crossval_split(sorted(cases), seed=SEED, n_splits=FOLDS)


if __name__ == "__main__":
    redirect(snakemake.log[0])
    import nnunet

    raw = Path(snakemake.input.dataset)
    ending = json.loads(raw.read_text())["file_ending"]
    cases = [label.name[: -len(ending)] for label in (raw.parent / "labelsTr").glob(f"*{ending}")]
    nnunet.write_json(write_splits(cases), Path(snakemake.output.splits))
