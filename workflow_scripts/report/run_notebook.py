"""Run a notebook with parameters and render it as a self-contained HTML page."""

import html
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from nbconvert import HTMLExporter

import workflow_scripts
from workflow_scripts.common.console import redirect
from workflow_scripts.common.errors import UserError

KERNEL = "workflow"
ROOT = Path(workflow_scripts.__file__).absolute().parents[1]
"""Folder of the clone, from which the notebooks import."""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1.5rem; color: #222;
  font: 16px/1.55 "Segoe UI", "Helvetica Neue", "DejaVu Sans", Arial, sans-serif; }}
h1, h2, h3 {{ line-height: 1.25; margin-top: 2em; }}
h1 {{ margin-top: 0.5em; }}
h2 {{ border-bottom: 1px solid #ddd; padding-bottom: 0.2em; }}
img {{ max-width: 100%; height: auto; display: block; margin: 1em auto; }}
table {{ border-collapse: collapse; margin: 1em 0; font-size: 0.88em; display: block;
  overflow-x: auto; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 0.3em 0.55em; text-align: left; border-bottom: 1px solid #e3e3e3; }}
th {{ vertical-align: bottom; }}
thead th {{ border-bottom: 2px solid #888; }}
code {{ background: #f3f3f3; padding: 0.1em 0.3em; border-radius: 3px; font-size: 0.9em; }}
blockquote {{ margin: 1em 0; padding: 0.4em 1em; background: #fff6e0;
  border-left: 4px solid #e69f00; }}
@media print {{ body {{ padding: 0; }} table {{ font-size: 0.58em; overflow-x: visible; }}
  th, td {{ padding: 0.25em 0.4em; }} }}
.anchor-link, .jp-InputPrompt, .jp-OutputPrompt, .prompt {{ display: none; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def use_own_kernel(folder: Path) -> None:
    """Make `KERNEL` a kernel of the running Python, for this process only.

    Jupyter's folders are moved into `folder`, so that the user's kernels and settings have no
    effect. The kernel finds `workflow_scripts` from any working directory.
    """
    spec = folder / "share" / "kernels" / KERNEL
    spec.mkdir(parents=True)
    arguments = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    content = {
        "argv": arguments,
        "display_name": "Python of the workflow",
        "language": "python",
        "env": {"PYTHONPATH": str(ROOT)},
    }
    (spec / "kernel.json").write_text(json.dumps(content))
    os.environ["JUPYTER_PATH"] = str(folder / "share")
    os.environ["JUPYTER_RUNTIME_DIR"] = str(folder / "runtime")
    os.environ["JUPYTER_DATA_DIR"] = str(folder / "data")
    os.environ["JUPYTER_CONFIG_DIR"] = str(folder / "config")
    os.environ["IPYTHONDIR"] = str(folder / "ipython")
    os.environ["MPLBACKEND"] = "Agg"


def execute(notebook: Path, parameters: dict[str, str], output: Path, failed: Path) -> None:
    """Run `notebook` and write it to `output`; if it fails, write the partial notebook to `failed`.

    Raises UserError with the cell and the error.
    """
    with tempfile.TemporaryDirectory() as name:
        use_own_kernel(Path(name))

        # Jupyter reads its folders when it is imported.
        import papermill
        from papermill.exceptions import PapermillExecutionError

        partial = Path(name) / notebook.name
        try:
            papermill.execute_notebook(
                str(notebook),
                str(partial),
                parameters=parameters,
                kernel_name=KERNEL,
                progress_bar=False,
                log_output=True,
            )
        except PapermillExecutionError as error:
            shutil.copyfile(partial, failed)
            raise UserError(
                f"{notebook}, cell {error.cell_index}: {error.ename}: {error.evalue}; the partial "
                f"notebook is {failed}"
            ) from error
        shutil.copyfile(partial, output)


def render(notebook: Path, output: Path, title: str) -> None:
    """Render an executed notebook without its code; images are embedded."""
    exporter = HTMLExporter(template_name="basic", exclude_input=True, embed_images=True)
    exporter.exclude_output_prompt = True
    body, _ = exporter.from_filename(str(notebook))
    # Let long arm names break at underscores, so that tables with many arms fit the page.
    body = re.sub(r"(?<=>)[^<>]*(?=</th>)", lambda head: head[0].replace("_", "_<wbr>"), body)
    output.write_text(PAGE.format(title=html.escape(title), body=body), encoding="utf-8")


if __name__ == "__main__":
    redirect(snakemake.log[0])
    study = snakemake.params.study
    source = Path(snakemake.input.notebook)
    paths = {name: str(path) for name, path in snakemake.input.items() if name != "notebook"}
    del paths["code"]
    execute(
        notebook=source,
        parameters={"study": study, **paths},
        output=Path(snakemake.output.notebook),
        failed=Path(snakemake.log[0]).with_suffix(".ipynb"),
    )
    render(
        notebook=Path(snakemake.output.notebook),
        output=Path(snakemake.output.html),
        title=f"{study}: {source.stem}",
    )
