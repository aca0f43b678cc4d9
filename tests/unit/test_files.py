"""Files are read with a clear message on errors, and never seen half-written."""

import json

import pytest

from workflow_scripts.common.errors import UserError
from workflow_scripts.common.files import read_json, replacing, write_json


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("left", ["file", "folder"])
def test_what_a_killed_process_left_is_not_in_the_way(tmp_path, left):
    path = tmp_path / "made" / "Task"
    with pytest.raises(FileNotFoundError), replacing(path) as partial:
        pass  # nothing is written, so there is nothing to move into place
    if left == "folder":
        (partial / "old").mkdir(parents=True)
    else:
        partial.write_text("half")
    with replacing(path) as partial:
        partial.mkdir()
        (partial / "new").touch()
    assert list(path.parent.iterdir()) == [path]
    assert [found.name for found in path.iterdir()] == ["new"]


def test_json_comes_back(tmp_path):
    path = tmp_path / "made" / "content.json"
    write_json({"größe": [1, None]}, path)
    assert read_json(path) == {"größe": [1, None]}
    path.write_text('["ä"]', encoding="utf-8")
    assert read_json(path, kind=list) == ["ä"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "content.json is missing; run again"),
        ('{"half": ', "content.json is not valid JSON .*; delete it and run again"),
        ("[]", "content.json does not contain a JSON object; delete it and run again"),
        ("folder", "content.json cannot be read .*; delete it and run again"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, content, message):
    path = tmp_path / "content.json"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_json(path)
    with pytest.raises(UserError, match=r"; train this fold again$"):
        read_json(path, "train this fold again")


def test_a_list_is_asked_for_by_name(tmp_path):
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({}))
    with pytest.raises(UserError, match="does not contain a JSON list"):
        read_json(path, kind=list)
