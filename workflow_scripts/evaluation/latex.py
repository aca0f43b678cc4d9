"""Text in LaTeX tables."""

from nbconvert.filters import escape_latex

TYPESET = str.maketrans(
    {
        **{"±": r"$\pm$", "×": r"$\times$", "↑": r"$\uparrow$", "↓": r"$\downarrow$"},
        **{"–": "--", "<": r"\textless{}", ">": r"\textgreater{}"},
    }
)
"""Characters other than commands that LaTeX cannot typeset without further packages."""


def latex_text(text: str) -> str:
    """Return `text` with all characters escaped that LaTeX interprets as commands."""
    return escape_latex(text).translate(TYPESET)
