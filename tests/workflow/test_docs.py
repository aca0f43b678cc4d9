"""The documentation is correct: commands, files, keys, links and quoted messages.

A block of commands is ```bash. If a test machine cannot run it, the comment right above it states
the reason, `<!-- not run: needs a GPU -->`. A YAML block that begins with `# name.yaml` is the
study to which the page's commands give this name.
"""

import ast
import csv
import json
import math
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from snakemake.cli import get_argument_parser

from helpers.tree import ROOT, copy_tree, dry_run
from workflow_scripts.study.config_validation import check_config

OUTSIDE = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "config/README.md")]
PAGES = [*OUTSIDE, *sorted(ROOT.glob("docs/**/*.md"))]
SCHEMA_PATH = ROOT / "config/schemas/config.schema.yaml"
SCHEMA = yaml.safe_load(SCHEMA_PATH.read_text())
MADE = ("results", "resources", "logs", ".snakemake", ".venv")
"""Folders that a clone does not have until something is run."""
ONLY_PARSED = {"--report", "--unlock", "--sdm", "--profile"}
"""With these, a dry run checks nothing, or needs something that a test machine lacks."""
SHELL = {"export", "cd", "git", "mkdir", "ln"}


@dataclass
class Block:
    """A fenced block: its language, its lines, and the comment right above it."""

    page: Path
    line: int
    language: str
    lines: list[str]
    comment: str

    @property
    def name(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page):
    found, before, block = [], "", None
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        fence = re.match(r"```(\w*)", line)
        if block is not None and fence:
            found.append(block)
            block, before = None, ""
        elif block is not None:
            block.lines.append(line)
        elif fence:
            block = Block(page, number, fence[1], [], before)
        elif line.strip():
            before = line
    assert block is None, f"{page}: a block is not closed"
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
REASON = re.compile(r"<!-- not run: (.{5,}) -->")


def commands_of(block):
    """Return the words of each command, comments and continued lines resolved."""
    text = "\n".join(block.lines).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    return [words for words in lines if words]


def is_snakemake(words):
    return Path(words[0]).name == "snakemake"


SHELL_BLOCKS = [block for block in BLOCKS if block.language == "bash"]
RUN = [block for block in SHELL_BLOCKS if not REASON.fullmatch(block.comment)]
COMMANDS = [(block, words) for block in RUN for words in commands_of(block)]
PLAIN = re.compile(r"\S*snakemake --|make [\w-]+$")
"""A command in a block that is not marked as ```bash."""
UNMARKED = [
    block
    for block in BLOCKS
    if not block.language and any(PLAIN.match(line) for line in block.lines)
]
SNAKEMAKE = [(block, words) for block, words in COMMANDS if is_snakemake(words)]
IDS = [f"{b.name}-{number}" for number, (b, _) in enumerate(SNAKEMAKE)]


def test_there_is_something_to_check():
    assert len(SHELL_BLOCKS) > 15
    assert len(SNAKEMAKE) > 20
    assert [block.name for block in UNMARKED] == []


@pytest.mark.parametrize("block", SHELL_BLOCKS, ids=lambda block: block.name)
def test_what_no_test_runs_has_a_reason(block):
    if "not run" in block.comment:
        assert REASON.fullmatch(block.comment)
        return
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for words in commands_of(block):
        if words[0] == "make":
            assert words[1] in targets, words
        else:
            assert is_snakemake(words) or words[0] in SHELL, f"{words[0]}: mark the block"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the workflow; its `data` stands for /data on the pages."""
    folder = copy_tree(tmp_path_factory.mktemp("docs"))
    own = folder / "data/Dataset501_Mine"
    own.mkdir(parents=True)
    (own / "dataset.json").write_text("{}")
    return folder


def write_studies(tree, page):
    """Write the YAML files of a page into the tree."""
    for block in blocks_of(page):
        name = re.match(r"# (\w+\.yaml)$", block.lines[0] if block.lines else "")
        if block.language == "yaml" and name:
            text = "\n".join(block.lines).replace("/data/", f"{tree}/data/")
            (tree / name[1]).write_text(text + "\n")


@pytest.mark.parametrize(("block", "words"), SNAKEMAKE, ids=IDS)
def test_a_command_of_snakemake_is_understood_and_plans(tree, block, words):
    arguments = [word.replace("/data/", f"{tree}/data/") for word in words[1:] if word != "…"]
    write_studies(tree, block.page)
    parsed = get_argument_parser().parse_args(arguments)
    for path in parsed.configfile or []:
        assert (tree / path).is_file(), path
    for profile in parsed.profile or []:
        assert (ROOT / profile / "config.yaml").is_file(), profile
    if ONLY_PARSED.isdisjoint(arguments):
        run = dry_run(tree, *arguments)
        assert run.returncode == 0, run.stdout + run.stderr
        assert "job" in run.stdout


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language in ("yaml", "json")], ids=lambda b: b.name
)
def test_yaml_and_json_can_be_read_and_keys_exist(block):
    text = "\n".join(block.lines)
    if block.language == "json":
        json.loads(text)
        return
    fragment = yaml.safe_load(text)
    if not fragment.keys() & SCHEMA["properties"].keys():
        return  # for example a profile
    demo = yaml.safe_load((ROOT / "config/studies/demo.yaml").read_text())
    whole = block.lines[0].startswith("# ")
    merged = fragment if whole else {**demo, **fragment}
    for key in ("training", "arms"):
        if not whole and key in fragment:
            merged[key] = {**demo[key], **fragment[key]}
    if not whole and "mine" in merged["arms"]:
        stages = merged["arms"]["mine"]["parameters"]["stage_list"]
        merged["training"]["epochs"] = sum(stage["epochs"] for stage in stages)
    check_config(merged, SCHEMA_PATH)


def test_the_trial_without_a_gpu_is_small_in_every_part():
    """It takes minutes on two cores; nnU-Net's validation and network alone would take hours."""
    (block,) = [b for b in BLOCKS if b.lines[:1] == ["# trial.yaml"]]
    config = yaml.safe_load("\n".join(block.lines))
    training = config["training"]
    assert training["device"] == "cpu"
    assert training["epochs"] * training["iterations_per_epoch"] <= 50
    assert training["validation_iterations_per_epoch"] <= training["iterations_per_epoch"] / 4
    assert max(config["planning"]["overrides"]["all"]["features_per_stage"]) <= 32
    assert config["validation"] == {"mirroring": False}
    assert len(config["folds"]) == 1


def prose_of(page):
    """Return a page without its blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)


def code_spans(page):
    return sorted(set(re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose_of(page))))


def keys_of(section, path):
    for key, value in section.get("properties", {}).items():
        yield f"{path}{key}"
        yield from keys_of(value, f"{path}{key}.")


KEYS = set(keys_of(SCHEMA, ""))
FILES = {".csv", ".md", ".yaml", ".svg", ".png", ".py"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_targets_and_keys_that_are_named_exist(page):
    rules = set()
    for path in (ROOT / "Snakefile", *ROOT.glob("rules/*.smk")):
        rules |= set(re.findall(r"^(?:rule|checkpoint) (\w+):", path.read_text(), re.M))
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    tops = {path.name for path in ROOT.iterdir() if path.is_dir()} - set(MADE)
    for span in code_spans(page):
        first = span.partition("/")[0]
        if re.fullmatch(r"[\w./-]+", span) and "/" in span and first in tops:
            assert (ROOT / span).exists(), span
        if make := re.match(r"make ([\w-]+)", span):
            assert make[1] in targets, span
        if target := re.match(r"snakemake (?:-n )?([a-z]\w+)$", span):
            assert target[1] in rules, span
        key = re.match(r"(\w+)\.[a-z_]+\b(?!\.)", span)
        if key and key[1] in SCHEMA["properties"] and Path(key[0]).suffix not in FILES:
            assert key[0] in KEYS, span


def anchors_of(page):
    """Return the anchors of a page's headings as GitHub makes them."""
    found = []
    for heading in re.findall(r"^#+ (.+)$", prose_of(page), re.M):
        text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", heading.lower())
        found.append(re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", OUTSIDE, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_pages_outside_the_site_resolve(page):
    """`make docs` checks links and navigation of the others."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors_of(file), f"{page.name}: {target}"


def test_make_docs_fails_at_a_link_to_nothing(tmp_path):
    """As `make docs` calls mkdocs: with --quiet, its strict mode counts no warning."""
    (flags,) = re.findall(r"mkdocs build (.+)$", (ROOT / "Makefile").read_text(), re.M)
    (tmp_path / "docs").mkdir()
    (tmp_path / "mkdocs.yml").write_text("site_name: Test\n")
    command = [sys.executable, "-m", "mkdocs", "build", *flags.split()]
    for text, fails in (("[here](index.md)", False), ("[there](nothing.md)", True)):
        (tmp_path / "docs/index.md").write_text(text)
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (run.returncode != 0) == fails, run.stderr
    assert "nothing.md" in run.stderr


# Quoted messages

ANYTHING = "\0"


def literals_of(path):
    """Yield all texts of a module; inserted values are `ANYTHING`."""
    tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            parts = [v.value if isinstance(v, ast.Constant) else ANYTHING for v in node.values]
            yield "".join(parts)


def sources():
    import batchgenerators
    import nnunetv2
    import snakemake as installed

    yield from ROOT.glob("workflow_scripts/**/*.py")
    yield Path(installed.__path__[0]) / "exceptions.py"
    yield Path(installed.__path__[0]) / "io/__init__.py"
    for name in ("preprocessing", "utilities", "experiment_planning"):
        yield from (Path(nnunetv2.__path__[0]) / name).rglob("*.py")
    yield from (Path(batchgenerators.__path__[0]) / "dataloading").glob("*.py")


@pytest.fixture(scope="module")
def messages():
    texts = {text for path in sources() for text in literals_of(path) if " " in text}
    return [re.sub(r"\s+", " ", text) for text in texts]


def quotes_of(page):
    """Return the quoted messages of a page; lines of one quote are joined."""
    before, quotes, current = "", [], []
    for line in [*prose_of(page).splitlines(), ""]:
        if line.startswith(">"):
            current.append(line[1:].strip())
        elif current:
            if not before.startswith("<!-- not in the source: "):
                quotes.append(" ".join(current))
            current, before = [], line
        elif line.strip():
            before = line
    return quotes


def is_said(quote, texts):
    """Return whether one text contains the parts of a quote between its …, in this order."""
    quote = re.sub(r"^(Error|config|RuntimeError): ", "", quote)
    pieces = [piece.strip() for piece in quote.split("…") if len(piece.strip()) > 2]
    pattern = re.compile(".*?".join(map(re.escape, pieces)))
    return bool(pieces) and any(pattern.search(text) for text in texts)


@pytest.mark.parametrize(
    "quote", quotes_of(ROOT / "docs/how-to/troubleshooting.md"), ids=lambda quote: quote[:60]
)
def test_a_quoted_message_is_said_by_the_source(messages, quote):
    assert is_said(quote, messages)


def test_a_message_that_nobody_says_is_noticed(messages):
    assert not is_said("Error: … was eaten by the dog", messages)
    assert not is_said("Error: … is missing; train this fold from scratch", messages)


def test_another_page_quotes_what_is_said(messages):
    quotes = quotes_of(ROOT / "docs/how-to/resuming.md")
    assert quotes
    assert [quote for quote in quotes if not is_said(quote, messages)] == []


def test_estimated_sizes_are_those_of_the_published_plans():
    """Cases × voxels of the median case × (4 bytes per channel + 1 for the labels)."""
    page = (ROOT / "docs/how-to/storage.md").read_text()
    rows = re.findall(r"^\| (Task\d\d_\w+) \| (.+?) \| (\d+) \| (.+?) \|$", page, re.M)
    shown = {task: cells for task, *cells in rows}
    with (ROOT / "config/tables/datasets.tsv").open(newline="") as file:
        register = {row["task"]: row for row in csv.DictReader(file, delimiter="\t")}
    with (ROOT / "config/published/nnunet_plans.tsv").open(newline="") as file:
        plans = list(csv.DictReader(file, delimiter="\t"))
    assert set(shown) == set(register)
    for row in plans:
        archive, cases, size = shown[row["task"]]
        known = register[row["task"]]["bytes"]
        assert archive == (f"{int(known) / 1e9:.3g}" if known else "unknown")
        assert cases == row["n_training_cases"] == register[row["task"]]["cases"]
        voxels = math.prod(json.loads(row["median_shape"])) * int(cases)
        estimate = voxels * (4 * int(row["n_input_channels"]) + 1) / 1e9
        given = re.search(r"\((.+)\)", size)
        assert float(given[1] if given else size) == pytest.approx(float(f"{estimate:.2g}"))
