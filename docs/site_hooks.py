"""mkdocs hook: turn links to files outside docs/, which the site lacks, into plain text."""

import posixpath
import re
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return a page's Markdown without the links that would leave the site."""
    folder = posixpath.dirname(page.file.src_uri)

    def unlink(match: re.Match[str]) -> str:
        path = match[2].partition("#")[0]
        outside = posixpath.normpath(posixpath.join(folder, path)).startswith("..")
        return match[1] if outside and "://" not in path else match[0]

    return LINK.sub(unlink, markdown)
