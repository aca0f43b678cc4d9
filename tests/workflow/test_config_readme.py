"""The page of keys matches the schema, and config/README.md lists every file."""

from pathlib import Path

import yaml

from workflow_scripts.study.document_config import PAGE, SCHEMA, render

CONFIG = Path(__file__).resolve().parents[2] / "config"


def test_page_is_current():
    page = render(yaml.safe_load(SCHEMA.read_text(encoding="utf-8")))
    assert PAGE.read_text(encoding="utf-8") == page, (
        "run: python -m workflow_scripts.study.document_config"
    )


def test_every_key_and_every_file_is_documented():
    page = PAGE.read_text(encoding="utf-8")
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    for key, section in schema["properties"].items():
        for name in (key, *section.get("properties", {})):
            assert f"`{name}`" in page
    page = (CONFIG / "README.md").read_text(encoding="utf-8")
    for folder in ("studies", "tools", "tables"):
        for path in (CONFIG / folder).iterdir():
            assert f"`{folder}/{path.name}`" in page
