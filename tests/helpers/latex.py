"""Compile a piece of LaTeX, if TeX is installed."""

import shutil
import subprocess

ENGINE = shutil.which("tectonic") or shutil.which("pdflatex")


def compile_article(folder, body, packages):
    """Compile `body` in an article with these packages; return the run, or None without TeX."""
    if ENGINE is None:
        return None
    document = folder / "article.tex"
    document.write_text(
        f"\\documentclass{{article}}\n\\usepackage{{{packages}}}\n\\begin{{document}}\n"
        f"{body}\\end{{document}}\n"
    )
    options = [] if ENGINE.endswith("tectonic") else ["-interaction=nonstopmode", "-halt-on-error"]
    return subprocess.run(
        [ENGINE, *options, document.name], cwd=folder, capture_output=True, text=True
    )
