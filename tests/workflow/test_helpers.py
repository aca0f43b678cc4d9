"""The tools of the tests do what they are for."""

import sys

from helpers.processes import Forked


def say_imported():
    print(*sorted({"torch", "nnunetv2", "snakemake.cli"} & set(sys.modules)))


def test_a_forked_process_has_the_imports_done(tmp_path):
    output = tmp_path / "said"
    assert Forked(say_imported, output=output).wait(600) == 0
    assert output.read_text().split() == ["nnunetv2", "snakemake.cli", "torch"]
