"""Find the modules that a script or notebook depends on by reading its imports.

Light rules have them as inputs, so that a change of a module makes their outputs again.
"""

import ast
import json
from functools import cache
from pathlib import Path

ROOT = Path(__file__).absolute().parents[2]
PACKAGE = "workflow_scripts"


def imported_modules(script: Path, root: Path = ROOT) -> list[Path]:
    """Return the project's files that a script imports, directly or indirectly, without itself.

    The script may be a notebook.

    `root` is the folder of the clone as it begins the script's path. Links are kept, so that the
    paths begin with it too.
    """
    found: set[Path] = set()
    pending = [script]
    while pending:
        for path in _imported_by(pending.pop(), root):
            if path not in found:
                found.add(path)
                pending.append(path)
    return sorted(found - {script})


def python_source(path: Path) -> str:
    """Return the Python code of a script or notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    return "\n".join("".join(cell["source"]) for cell in cells)


@cache
def _imported_by(path: Path, root: Path) -> frozenset[Path]:
    """Return the project's files that a file imports directly."""
    names: set[str] = set()
    package = ".".join(path.relative_to(root).parts[:-1])
    for node in ast.walk(ast.parse(python_source(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names |= {node.value}  # for `import_module` or `python -m`
    files = {root / f"{name.replace('.', '/')}.py" for name in names if name.startswith(PACKAGE)}
    return frozenset(file for file in files if file.is_file())
