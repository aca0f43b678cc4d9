"""nnU-Net's final validation, which resumes at the first case without a prediction."""

import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from workflow_scripts.common.files import read_json, write_json
from workflow_scripts.common.images import check_whole

CHECKED = (".gz", ".nii", ".mha", ".nrrd", ".gipl", ".png")
"""Image formats in which an incomplete file can be recognised."""
EXPORT_SECONDS = 300.0
"""Maximum wait for the exports of predicted cases when a validation ends early."""


def validate(
    trainer: Any,
    folder: Path,
    made_with: dict[str, Any],
    before_case: Callable[[int, Callable[[], None]], None],
    after_case: Callable[[str, int], None],
) -> None:
    """Predict the validation cases that have no prediction yet, then evaluate all cases.

    This is nnU-Net's own validation with a shorter list of cases. It evaluates everything in its
    folder, so `summary.json` is the same as without an interruption.

    Args:
        trainer: trained trainer of nnU-Net.
        folder: nnU-Net's fold folder.
        made_with: inputs of the predictions; predictions made with anything else are deleted.
        before_case: called with the number of predicted cases and a function that waits for their
            exports; an exception that it raises ends the validation.
        after_case: called with each case after its prediction (its export may still be running)
            and the number of predicted cases.
    """
    output, mark = folder / "validation", folder / "validation_made_with.json"
    ending = trainer.dataset_json["file_ending"]
    (output / "summary.json").unlink(missing_ok=True)
    if not mark.exists() or read_json(mark) != made_with:
        for path in output.glob(f"*{ending}"):
            path.unlink()
        write_json(made_with, mark)
    training, validation = trainer.do_split()
    files = {case: output / f"{case}{ending}" for case in validation}
    left = [case for case, path in files.items() if not is_whole(path)]
    done = len(validation) - len(left)

    def split() -> tuple[list[str], list[str]]:
        # nnU-Net has started its workers and will iterate over the cases.
        workers = [w for w in multiprocessing.active_children() if "PoolWorker" in w.name]

        def before(seen: list[str]) -> None:
            paths = [files[case] for case in seen]
            before_case(done + len(seen), lambda: _wait_until_whole(paths, workers))

        def after(seen: list[str]) -> None:
            after_case(seen[-1], done + len(seen))

        return training, _Cases(left, before, after)

    # The workflow trains no cascade; nnU-Net would need the data of its second network.
    trainer.configuration_manager.configuration.pop("next_stage", None)
    trainer.do_split = split
    try:
        trainer.perform_actual_validation(False)
    finally:
        del trainer.do_split


class _Cases(list):
    """Iterates over cases, with a callback before and after each."""

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
    """Return whether an image exists and can be read completely.

    A killed process leaves an incomplete file. Readers may accept a truncated TIFF or BMP, so these
    never count as complete, and their cases are predicted again.
    """
    try:
        check_whole(path)
        if path.suffix in (".mha", ".nrrd"):
            SimpleITKIO().read_seg(str(path))
        return path.suffix in CHECKED and path.stat().st_size > 0  # gzip accepts an empty file
    except Exception:  # each reader has its own exceptions
        return False


def _wait_until_whole(paths: list[Path], workers: list[BaseProcess]) -> None:
    """Wait until the images are written, or until a process that writes them has died."""
    until = time.monotonic() + EXPORT_SECONDS
    paths = [path for path in paths if path.suffix in CHECKED]
    while (paths := [path for path in paths if not is_whole(path)]) and (
        time.monotonic() < until and all(worker.is_alive() for worker in workers)
    ):
        time.sleep(0.1)
