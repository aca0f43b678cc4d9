"""`python -m patch_curricula`: the folder for `nnUNet_extTrainer`, a schedule, or an export."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

EXTERNAL = Path(__file__).parent / "standalone" / "external"
"""Value of `nnUNet_extTrainer` with which nnU-Net finds the trainers of the installed package."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; without one, print the folder for `nnUNet_extTrainer`.

    Exits with a message for invalid arguments.
    """
    parser = argparse.ArgumentParser(prog="python -m patch_curricula", description=main.__doc__)
    commands = parser.add_subparsers(dest="command")
    plan = commands.add_parser("plan", help="print the schedule of an arm")
    plan.add_argument("plans", type=Path, help="nnU-Net's file of plans")
    plan.add_argument("--arm", required=True, help="an arm or a trainer, such as progressive")
    plan.add_argument("--configuration", default="3d_fullres", help="default: 3d_fullres")
    export = commands.add_parser("export", help="write a model that nnU-Net reads without this")
    export.add_argument("model", type=Path, help="nnU-Net's folder TRAINER__PLANS__CONFIGURATION")
    export.add_argument("out", type=Path, help="folder for the model and its zip")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "plan":
            from .standalone.plan import describe_schedule

            print(describe_schedule(chosen.plans, chosen.configuration, chosen.arm))
        elif chosen.command == "export":
            from .standalone.model_export import export_model

            print(export_model(chosen.model, chosen.out))
        else:
            print(EXTERNAL)
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
