"""Tables that people type or save from a spreadsheet, and the names in them."""

import csv
import io
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from workflow_scripts.common.errors import UserError

INVISIBLE = "\ufeff\u200b\u200c\u200d\u2060"
"""Characters without width, which copied text may contain: byte order marks and joiners."""


def clean(name: str) -> str:
    """Return a name without what nobody sees: space around it, and the form of its accents.

    The form is NFC; macOS names files in NFD. A non-breaking space counts as a space.

    Raises:
        TypeError: it is not text.
    """
    text = unicodedata.normalize("NFC", name).translate(dict.fromkeys(map(ord, INVISIBLE)))
    return " ".join(text.split())


def likeness(name: str) -> str:
    """Return a text that is equal for names which a person would take for the same one.

    Case, spaces and the width of characters do not count, nor do the zeros before a number or its
    empty decimals, which spreadsheets add and remove.
    """
    folded = "".join(unicodedata.normalize("NFKC", clean(name)).casefold().split())
    whole = re.sub(r"(?<![\d.])(\d+)\.0+$", r"\1", folded)
    return re.sub(r"(?<![\d.])0+(?=\d)", "", whole)


def read_table(path: Path, columns: Sequence[str]) -> list[tuple[int, list[str]]]:
    """Return the line number and the cleaned cells of `columns` for each row of a table.

    Columns are separated by commas, semicolons (as Excel does in many countries) or tabs. The text
    is UTF-8, or UTF-16 with a byte order mark. Cells may be quoted. Empty lines, lines that begin
    with `#`, and Excel's line `sep=;` are skipped.

    Raises:
        UserError: the file cannot be read, a column is missing or there twice, or a row has another
            number of cells than the header; the message names the line.
    """
    lines = _read_text(path).splitlines()
    first = next((n for n, line in enumerate(lines) if not _skipped(line)), 0)
    header = lines[first] if lines else ""
    mark = next((mark for mark in "\t;" if mark in header), ",")
    body = "\n".join("" if _skipped(line) else line for line in lines)
    reader = csv.reader(io.StringIO(body, newline=""), delimiter=mark, skipinitialspace=True)
    names: list[str] | None = None
    rows = []
    try:
        for cells in reader:
            cells = [clean(cell) for cell in cells]
            while cells and not cells[-1] and len(cells) > len(names or ()):
                cells.pop()
            if not any(cells):
                continue
            if names is None:
                names = [cell.casefold() for cell in cells]
                _check_header(path, names, columns)
            elif len(cells) != len(names):
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells, but the header has "
                    f"{len(names)}"
                )
            else:
                rows.append((reader.line_num, [cells[names.index(name)] for name in columns]))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from None
    if names is None:
        _check_header(path, [], columns)
    return rows


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    utf_16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return content.decode("utf-16" if utf_16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: not UTF-8 text; in a spreadsheet, save it as `CSV UTF-8`"
        ) from None


def _skipped(line: str) -> bool:
    text = clean(line)
    return not text or text.startswith("#") or bool(re.fullmatch("sep=.?", text, re.IGNORECASE))


def _check_header(path: Path, names: Sequence[str], columns: Sequence[str]) -> None:
    wanted = " and ".join(f"`{column}`" for column in columns)
    if any(names.count(column) != 1 for column in columns):
        raise UserError(
            f"{path}: no table with the columns {wanted}, once each; its first line has "
            f"{', '.join(names) or 'nothing'}"
        )
