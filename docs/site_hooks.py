"""mkdocs hook: turn links to files outside docs/, which the site lacks, into plain text.

A link to a file that does not exist is a warning, with which a strict build fails.
"""

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

LOG = logging.getLogger("mkdocs.hooks.links")

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Return a page's Markdown without the links that would leave the site."""
    folder = posixpath.dirname(page.file.src_uri)

    def unlink(match: re.Match[str]) -> str:
        path = match[2].partition("#")[0]
        target = posixpath.normpath(posixpath.join(folder, path))
        if not target.startswith("..") or "://" in path:
            return match[0]
        if not Path(config["docs_dir"], target).exists():
            LOG.warning("%s: there is no file %s", page.file.src_uri, path)
        return match[1]

    return LINK.sub(unlink, markdown)
