"""Text in LaTeX tables."""

from nbconvert.filters import escape_latex

TYPESET = str.maketrans(
    {
        **{"±": r"$\pm$", "×": r"$\times$", "↑": r"$\uparrow$", "↓": r"$\downarrow$"},
        **{"–": "--", "<": r"\textless{}", ">": r"\textgreater{}"},
    }
)
"""Characters that are no commands, but that LaTeX cannot typeset without further packages."""


def latex_text(text: str) -> str:
    """Return `text` with everything escaped that LaTeX would take for a command."""
    return escape_latex(text).translate(TYPESET)
