"""Bake a scale-space network for one scale factor into an ordinary nnU-Net model folder."""

from pathlib import Path

from workflow_scripts.common import nnunet_setup
from workflow_scripts.common.console import announce, redirect
from workflow_scripts.common.files import read_json
from workflow_scripts.scale_space.baking import bake_model
from workflow_scripts.scale_space.scale_tables import read_choice
from workflow_scripts.study.scale_grid import CHOSEN

if __name__ == "__main__":
    redirect(snakemake.log[0])

    nnunet_setup.configure(processes=1)

    wanted = snakemake.wildcards.scale
    if wanted == CHOSEN:
        wanted = read_choice(
            Path(snakemake.input.choice), snakemake.params.task, snakemake.wildcards.arm
        )
    records = [read_json(Path(path), "train this fold again") for path in snakemake.input.runs]
    model = Path(snakemake.output.plans).parent
    bake_model(
        folds={int(record["fold"]): Path(record["results_folder"]) for record in records},
        parameters=snakemake.params.parameters,
        scale=float(wanted),
        model=model,
    )
    folds = " ".join(str(record["fold"]) for record in records)
    announce(
        f"To predict with it: nnUNet_extTrainer={model}/trainers "
        f"nnUNetv2_predict_from_modelfolder -m {model} -f {folds} -i images -o predictions"
    )
