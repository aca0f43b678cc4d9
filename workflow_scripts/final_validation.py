"""nnU-Net's final validation, which goes on at the first case that is not predicted yet."""

import gzip
import hashlib
import json
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import nibabel

from nnunet import write_json

CHECKED = (".gz", ".nii", ".mha", ".nrrd")
"""Kinds of images of which half a one can be told from a whole one."""
EXPORT_SECONDS = 300.0
"""Longest wait for the exports of the cases that are predicted, when a validation ends early."""


def validate(
    trainer: Any,
    folder: Path,
    made_with: dict[str, Any],
    before_case: Callable[[int, Callable[[], None]], None],
    after_case: Callable[[str, int], None],
) -> None:
    """Predict all validation cases that are not predicted yet, then measure all of them.

    It is nnU-Net's own validation, whose list of cases leaves out those that an interrupted one has
    predicted; it measures whatever is in its folder, so that `summary.json` is that of a validation
    which was never interrupted.

    Args:
        trainer: of nnU-Net, trained.
        folder: nnU-Net's fold folder.
        made_with: what the predictions depend on; those that were made with anything else are
            deleted.
        before_case: called with the number of cases that are predicted and a function that waits
            for their exports; an exception that it raises ends the validation.
        after_case: called with each case as its prediction is done, its export being under way, and
            with the number of cases that are predicted then.
    """
    output, mark = folder / "validation", folder / "validation_made_with.json"
    ending = trainer.dataset_json["file_ending"]
    (output / "summary.json").unlink(missing_ok=True)
    if not mark.exists() or json.loads(mark.read_text()) != made_with:
        for path in output.glob(f"*{ending}"):
            path.unlink()
        write_json(made_with, mark)
    training, validation = trainer.do_split()
    files = {case: output / f"{case}{ending}" for case in validation}
    left = [case for case, path in files.items() if not is_whole(path)]
    done = len(validation) - len(left)

    def split() -> tuple[list[str], list[str]]:
        # nnU-Net has made its workers, and is going to take one case after the other.
        workers = [w for w in multiprocessing.active_children() if "PoolWorker" in w.name]

        def before(seen: list[str]) -> None:
            paths = [files[case] for case in seen]
            before_case(done + len(seen), lambda: _wait_until_whole(paths, workers))

        def after(seen: list[str]) -> None:
            after_case(seen[-1], done + len(seen))

        return training, _Cases(left, before, after)

    trainer.do_split = split
    try:
        trainer.perform_actual_validation(False)
    finally:
        del trainer.do_split


class _Cases(list):
    """Cases that are handed out one by one, with something to do before and after each."""

    def __init__(
        self,
        cases: Iterable[str],
        before: Callable[[list[str]], None],
        after: Callable[[list[str]], None],
    ) -> None:
        super().__init__(cases)
        self._before, self._after = before, after

    def __iter__(self) -> Iterator[str]:
        seen: list[str] = []
        for case in super().__iter__():
            self._before(seen)
            yield case
            seen.append(case)
            self._after(seen)


def is_whole(path: Path) -> bool:
    """Tell whether an image is there and can be read through; a killed process leaves half of one.

    SimpleITK, which nnU-Net writes and reads most images with, fills up what a NIfTI file lacks
    without a word, so gzip and nibabel are asked about these. Images of a kind of which no reader
    notices the half (TIFF, PNG) are never whole: they are predicted again.
    """
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                while file.read(1 << 20):
                    pass
        elif path.suffix == ".nii":
            image: Any = nibabel.load(path)
            image.get_fdata(caching="unchanged")
        elif path.suffix in CHECKED:
            from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

            SimpleITKIO().read_seg(str(path))
        return path.suffix in CHECKED and path.stat().st_size > 0  # gzip takes nothing for whole
    except Exception:  # readers raise many kinds for a damaged file
        return False


def _wait_until_whole(paths: list[Path], workers: list[BaseProcess]) -> None:
    """Wait until the images are written, as long as all processes live that may be writing them."""
    until = time.monotonic() + EXPORT_SECONDS
    paths = [path for path in paths if path.suffix in CHECKED]
    while (paths := [path for path in paths if not is_whole(path)]) and (
        time.monotonic() < until and all(worker.is_alive() for worker in workers)
    ):
        time.sleep(0.1)


def digest(path: Path) -> str:
    """Return a short digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
