"""A user's own folds: a `splits_final.json`, or a table that groups the cases."""

from collections.abc import Collection, Iterable
from pathlib import Path

from sklearn.model_selection import GroupKFold

from workflow_scripts.common.errors import UserError
from workflow_scripts.common.files import read_json
from workflow_scripts.common.nnunet_setup import FOLDS, SPLITS
from workflow_scripts.data.typed_tables import clean, likeness, read_table

PARTS = ("train", "val")
Folds = list[dict[str, list[str]]]
"""In nnU-Net's format: the cases of `train` and `val` of each fold."""


def find_folds(folder: Path, groups: Path | None, cases: Collection[str]) -> Folds | None:
    """Return the folds that come with a dataset, or None if nnU-Net is to draw them.

    Args:
        folder: folder of the dataset, which may contain a `splits_final.json`.
        groups: table of cases and their groups, if any.
        cases: names of all cases.

    Raises:
        UserError: both are given, one is unusable, or there are too few cases for nnU-Net's folds.
    """
    splits = folder / SPLITS
    if splits.is_file() and groups is not None:
        raise UserError(f"{splits} and groups ({groups}) both define the folds: use one of them")
    if splits.is_file():
        return read_folds(splits, cases)
    if groups is not None:
        return draw_folds(read_groups(groups, cases))
    if len(cases) < FOLDS:
        raise UserError(
            f"{folder}: {len(cases)} cases are too few for nnU-Net's {FOLDS} folds: put a {SPLITS} "
            "with your own folds next to dataset.json (docs/how-to/own_dataset.md)"
        )
    return None


def read_folds(path: Path, cases: Collection[str]) -> Folds:
    """Read and check a `splits_final.json`.

    Every fold needs training cases and different validation cases, all from the dataset. No case
    may be validated in two folds, because the statistics treat cases as independent. Names may
    differ from the dataset's as described in `typed_tables.clean`.

    Raises:
        UserError: the message names the first fault of each fold.
    """
    folds = read_json(path, "it must list the folds in nnU-Net's format", kind=list)
    named = {clean(case): case for case in cases}
    read: Folds = []
    faults, seen = [], dict[str, int]()
    for number, fold in enumerate(folds):
        try:
            train, val = ({named.get(clean(c), c) for c in fold[part]} for part in PARTS)
        except (KeyError, TypeError):
            faults.append(f"fold {number}: it needs the lists `train` and `val`")
            continue
        again = val & set(seen)
        if not train or not val:
            faults.append(f"fold {number}: no case in `{'val' if train else 'train'}`")
        elif unknown := (train | val) - set(cases):
            faults.append(f"fold {number}: {_few(unknown)} not in the dataset")
        elif shared := train & val:
            faults.append(f"fold {number}: {_few(shared)} in both `train` and `val`")
        elif again:
            faults.append(f"fold {number}: {_few(again)} in `val` of fold {seen[min(again)]} too")
        seen |= dict.fromkeys(val, number)
        read.append({"train": sorted(map(str, train)), "val": sorted(map(str, val))})
    if faults or not folds:
        raise UserError(f"{path}: " + ("; ".join(faults) or "no folds"))
    return read


def read_groups(path: Path, cases: Collection[str]) -> dict[str, str]:
    """Read a table: case -> its group, as text.

    The table has the columns `case` and `group` (the patient, for example), in any form that
    `typed_tables.read_table` accepts. Other cases are ignored.

    Raises:
        UserError: the table or a column is missing; a case is missing, duplicated or ungrouped; or
            two groups are so alike that they are probably one.
    """
    rows = read_table(path, ("case", "group"))
    known = {clean(case): case for case in cases}
    group_of, lines = dict[str, str](), dict[str, int]()
    groups = dict[str, tuple[str, int]]()
    for line, (case, group) in rows:
        if case in lines:
            raise UserError(
                f"{path}, line {line}: {case} is twice in the column `case`; the first time in "
                f"line {lines[case]}"
            )
        lines[case] = line
        if case not in known:
            continue
        if not group:
            raise UserError(f"{path}, line {line}: no group for {case}")
        alike, before = groups.setdefault(likeness(group), (group, line))
        if alike != group:
            raise UserError(
                f"{path}, line {line}: the group {group!r} is probably the {alike!r} of line "
                f"{before}. If so, write both alike; if not, give them names that differ in more "
                "than case, spaces, leading zeros or decimals"
            )
        group_of[known[case]] = group
    if missing := set(cases) - set(group_of):
        raise UserError(f"{path}: no group for {_few(missing)}")
    return dict(sorted(group_of.items()))


def draw_folds(group_of: dict[str, str]) -> Folds:
    """Return five folds of similar size; within a fold, no group is in both `train` and `val`.

    They come from scikit-learn's `GroupKFold`, which is not random.

    Raises:
        UserError: there are fewer than five groups.
    """
    cases, groups = list(group_of), list(group_of.values())
    if len(set(groups)) < FOLDS:
        raise UserError(
            f"{len(set(groups))} groups are too few for {FOLDS} folds: put your own folds into a "
            f"{SPLITS} (docs/how-to/own_dataset.md)"
        )
    drawn = GroupKFold(FOLDS).split(cases, groups=groups)
    return [
        {"train": [cases[i] for i in train], "val": [cases[i] for i in val]} for train, val in drawn
    ]


def _few(cases: Iterable[str]) -> str:
    """Name up to three cases."""
    names = sorted(map(str, cases))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
