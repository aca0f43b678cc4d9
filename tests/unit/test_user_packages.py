"""What a user has in ~/.local is hidden from the jobs, unless Snakemake itself is there."""

import os
import site
from pathlib import Path

import pytest
import snakemake

from user_packages import keep_out


@pytest.mark.parametrize("at_home", [False, True])
def test_user_packages_are_hidden_unless_snakemake_is_one(monkeypatch, tmp_path, at_home):
    folder = Path(snakemake.__file__).parents[1] if at_home else tmp_path
    monkeypatch.setattr(site, "getusersitepackages", lambda: str(folder))
    monkeypatch.setenv("PYTHONNOUSERSITE", "")
    keep_out()
    assert os.environ["PYTHONNOUSERSITE"] == ("" if at_home else "1")
