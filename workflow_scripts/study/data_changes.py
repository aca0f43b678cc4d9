"""Notice that the data of a task have changed since they were imported or trained on.

A record lists size, time and digest of each image and label. Only files whose size or time differs
are read again. The module imports only packages that Snakemake installs.
"""

import contextlib
import gzip
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from workflow_scripts.common.errors import ConfigError
from workflow_scripts.common.nnunet_setup import PREPROCESSED, RAW
from workflow_scripts.study.tasks import SOURCE, dataset_of
from workflow_scripts.trainers.curricula.durable_files import replace_durably

PLACES = ("imagesTr", "labelsTr")
RECORD = "data_record.json"
"""Record in the preprocessed folder of a dataset (what was preprocessed), and in its raw folder if
files were copied there from the user's folder (what was imported)."""
TRAINED_ON = "data.json"
"""File in nnU-Net's fold folder: the digest of each case that it was trained and validated on."""
CHUNK = 2**22

Record = dict[str, list[Any]]
"""File, relative to the dataset -> size in bytes, time of change in ns, digest of its content."""


def make_record(
    folder: Path, threads: int, before: Mapping[str, list[Any]] | None = None
) -> Record:
    """Describe all images and labels of a dataset; files as in the record `before` are not read.

    The digest is that of the uncompressed content, so compressing a file again changes nothing.
    """
    known = before or {}

    def describe(path: Path) -> tuple[str, list[Any]]:
        name, stat = f"{path.parent.name}/{path.name}", path.stat()
        size_and_time = [stat.st_size, stat.st_mtime_ns]
        old = known.get(name)
        same = old is not None and old[:2] == size_and_time
        return name, [*size_and_time, old[2] if old and same else _digest(path)]

    with ThreadPoolExecutor(max(1, threads)) as pool:
        return dict(pool.map(describe, _files(folder)))


def _files(folder: Path) -> list[Path]:
    """List the images and labels that can be read; the targets of links may be away."""
    return [
        path
        for place in PLACES
        for path in sorted((folder / place).glob("*"))
        if not path.name.startswith(".") and path.is_file()
    ]


def _digest(path: Path) -> str:
    total = hashlib.sha256()
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        while chunk := file.read(CHUNK):
            total.update(chunk)
    return total.hexdigest()[:16]


def changed_files(folder: Path, record: Path) -> list[str]:
    """Return what differs between a dataset and its record; the record learns new dates.

    Nothing has changed if the whole dataset is away, such as a disk that is not mounted.
    """
    before: Record = _read(record)
    now = make_record(folder, os.cpu_count() or 1, before)
    if not now:
        return []
    changes = [f"{name} is gone" for name in before.keys() - now.keys()]
    changes += [f"{name} is new" for name in now.keys() - before.keys()]
    both = before.keys() & now.keys()
    changes += [f"{name} has changed" for name in both if before[name][2] != now[name][2]]
    if not changes and now != before:
        with contextlib.suppress(OSError):  # others may share it read-only
            _write(now, record)
    return sorted(changes)


def write_record(folder: Path, record: Path, threads: int) -> Record:
    """Describe a dataset in the file `record`."""
    made = make_record(folder, threads)
    _write(made, record)
    return made


def _write(content: Mapping[str, Any], path: Path) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(content) + "\n", encoding="utf-8")
    replace_durably(partial, path)


def digests_of_cases(record: Mapping[str, list[Any]], ending: str) -> dict[str, str]:
    """Return one digest for each case, of all its images and its label."""
    names = [name for name in sorted(record) if name.endswith(ending)]
    images: dict[str, list[str]] = {}
    for name in names:
        case, _, channel = name.removesuffix(ending).rpartition("_")
        if name.startswith("imagesTr/") and len(channel) == 4 and channel.isdigit():
            images.setdefault(case.removeprefix("imagesTr/"), []).append(name)
    found = {}
    for label in (name for name in names if name.startswith("labelsTr/")):
        case = label.removeprefix("labelsTr/").removesuffix(ending)
        files = [label, *images.get(case, [])]
        text = "\n".join(f"{name} {record[name][2]}" for name in files)
        found[case] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return found


def check_data(study: str, tasks: Iterable[str]) -> None:
    """Refuse a study whose data are not those that were preprocessed, or that it was trained on.

    Tasks that were preprocessed before there were records are not checked.

    Args:
        study: name of the study.
        tasks: its tasks.

    Raises:
        ConfigError: one line per task: what has changed, and what to do.
    """
    problems = []
    for task in tasks:
        dataset = dataset_of(task)
        raw, preprocessed = RAW / dataset, PREPROCESSED / dataset
        changes = _changes_of_source(raw)
        if not changes and (preprocessed / RECORD).is_file():
            changes = changed_files(raw, preprocessed / RECORD)
        if changes:
            problems.append(
                f"{task}: the data have changed since they were imported: {_few(changes)}. Undo "
                f"that, or give the task another name, or remove {raw}, {preprocessed} and the "
                f"task's results (docs/how-to/own_dataset.md#when-the-data-change)"
            )
            continue
        now = digests_of_preprocessed(preprocessed)
        for fold in folds_of(study, dataset):
            if cases := changed_cases(fold, now):
                problems.append(
                    f"{task}: {fold} was trained on other data, which differ in {_few(cases)}. "
                    "Restore the former data, or choose another `study` name, or remove the task's "
                    "results (docs/how-to/own_dataset.md#when-the-data-change)"
                )
                break
    if problems:
        raise ConfigError("\n".join(f"config: {line}" for line in problems))


def _changes_of_source(raw: Path) -> list[str]:
    """Return what has changed in the user's folder, if its files were copied and it exists."""
    if not ((raw / RECORD).is_file() and (raw / "dataset.json").is_file()):
        return []
    source = _read(raw / "dataset.json").get(SOURCE)
    return changed_files(Path(source), raw / RECORD) if source else []


def folds_of(study: str, dataset: str) -> list[Path]:
    """Return nnU-Net's folders of a study's folds that say what they were trained on."""
    model = f"{dataset}/*/fold_*/{TRAINED_ON}"
    results = Path("results", study, "nnunet")
    found = [*results.glob(f"*/{model}"), *results.glob(f"*/seed_*/{model}")]
    return sorted(path.parent for path in found)


def digests_of_preprocessed(preprocessed: Path) -> dict[str, str] | None:
    """Return the digest of each case that was preprocessed; None without a record of them."""
    record, description = preprocessed / RECORD, preprocessed / "dataset.json"
    if not (record.is_file() and description.is_file()):
        return None
    return digests_of_cases(_read(record), _read(description)["file_ending"])


def changed_cases(fold: Path, now: Mapping[str, str] | None) -> list[str]:
    """Return the cases of a fold that differ from `now` (`digests_of_preprocessed`), if known."""
    if now is None:
        return []
    trained = _read(fold / TRAINED_ON)
    return sorted(case for case, digest in trained.items() if now.get(case) != digest)


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file.

    Raises:
        ConfigError: it is broken, for example after a full disk.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(
            f"config: {path} is not JSON ({error}). Restore it; without it, the data that it "
            "describes are not checked"
        ) from None
    return content


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
