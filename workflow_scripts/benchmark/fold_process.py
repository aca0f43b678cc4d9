"""One training by `train_fold` in its own process: `fold_process SPEC`, a JSON file."""

import json
import sys
from pathlib import Path

from workflow_scripts.study.settings import RunSettings
from workflow_scripts.study.specification import RunSpec
from workflow_scripts.training.fold_training import Files, train_fold

OUTPUTS = ("run", "epochs", "stages", "energy", "summary")

if __name__ == "__main__":
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    folder = Path(spec["folder"])
    files = Files(
        results=folder / "nnunet",
        plans=Path(spec["plans_file"]),
        splits=Path(spec["splits_file"]),
        outputs={name: folder / name for name in OUTPUTS},
    )
    train_fold(RunSpec(**spec["run"]), RunSettings.from_dict(spec["settings"]), files)
