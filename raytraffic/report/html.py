"""Self-contained HTML pages of text, pictures and tables: no script, nothing loaded from anywhere, every text escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from raytraffic.files import Location
from raytraffic.report.style import STYLE_SHEET

__all__ = ["Beside", "Cell", "Column", "Folded", "Gallery", "Group", "Part", "Picture", "Section", "Table", "Text", "write_report"]

Cell = str | int | float


@dataclass(frozen=True)
class Text:
    """Paragraphs of plain text; `lead` sets them larger."""

    paragraphs: Sequence[str]
    lead: bool = False


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image as a data: URI with the text that stands for it and its caption."""

    source: str
    alt: str
    caption: str

    def __post_init__(self) -> None:
        if not self.source.startswith("data:image/"):
            raise ValueError(f"picture.source: {self.source[:40]!r}, expected a data:image/ URI (a report loads nothing)")


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side, as many in a row as the screen is wide; `wide` ones have a row each and scroll on a narrow screen."""

    pictures: Sequence[Picture]
    wide: bool = False


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table; the value nearest to `target` is emphasised in every group (0 = the lowest, None = no value).

    Floats are shown, and compared, with `decimals`, or with as many as suit the column's middle value.
    """

    name: str
    target: float | None = None
    decimals: int | None = None


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows that are compared with one another; `label` may be empty."""

    label: str
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table whose first column names the row; rows named `ours` are set apart. ValueError where a row's length is not the columns'."""

    caption: str
    columns: Sequence[Column]
    groups: Sequence[Group]
    ours: str = ""

    def __post_init__(self) -> None:
        for row in (row for group in self.groups for row in group.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.caption!r}: a row of {len(row)} cells, expected {len(self.columns)}")


@dataclass(frozen=True)
class Folded:
    """Parts that are hidden until the reader opens them."""

    summary: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Beside:
    """Parts that stand next to one another where the screen is wide enough."""

    parts: Sequence[Part]


Part = Text | Gallery | Table | Folded | Beside


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    parts: Sequence[Part]


def write_report(path: str | Path | Location, title: str, sections: Sequence[Section]) -> Location:
    """Write one HTML file (local or s3://), wholly or not at all, and return where it is."""
    place = Location.of(path)
    links = "".join(f'<li><a href="#s{i}">{escape(section.title)}</a></li>' for i, section in enumerate(sections))
    body = "\n".join(
        f'<section id="s{i}">\n<h2>{escape(section.title)}</h2>\n{_parts(section.parts)}\n</section>' for i, section in enumerate(sections)
    )
    # The policy lets a browser refuse what escaping might ever miss.
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>
{STYLE_SHEET}
</style>
</head>
<body>
<h1>{escape(title)}</h1>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main>
{body}
</main>
</body>
</html>
"""
    place.write_bytes(page.encode())
    return place


def _parts(parts: Sequence[Part]) -> str:
    return "\n".join(_part(part) for part in parts)


def _part(part: Part) -> str:
    if isinstance(part, Text):
        kind = ' class="lead"' if part.lead else ""
        return "\n".join(f"<p{kind}>{escape(paragraph)}</p>" for paragraph in part.paragraphs)
    if isinstance(part, Gallery):
        kind = "gallery wide" if part.wide else "gallery"
        return f'<div class="{kind}">\n' + "\n".join(_figure(picture) for picture in part.pictures) + "\n</div>"
    if isinstance(part, Folded):
        return f"<details><summary>{escape(part.summary)}</summary>\n{_parts(part.parts)}\n</details>"
    if isinstance(part, Beside):
        return f'<div class="beside">\n{_parts(part.parts)}\n</div>'
    return _table(part)


def _figure(picture: Picture) -> str:
    image = f'<img src="{escape(picture.source)}" alt="{escape(picture.alt)}">'
    return f"<figure>{image}<figcaption>{escape(picture.caption)}</figcaption></figure>"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(column.name)}</th>' for column in table.columns)
    texts = _texts(table)
    body = "\n".join(_group(table, group, texts[i]) for i, group in enumerate(table.groups))
    caption = f"<caption>{escape(table.caption)}</caption>"
    # A focusable region, so that a wide table can be scrolled from the keyboard.
    region = f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(table.caption)}">'
    return f"{region}<table>{caption}<thead><tr>{head}</tr></thead>\n{body}\n</table></div>"


def _group(table: Table, group: Group, texts: Sequence[Sequence[str]]) -> str:
    best = [_best([_compared(row[j], column) for row in group.rows], column.target) for j, column in enumerate(table.columns)]
    lines = [f'<tr><th scope="rowgroup" colspan="{len(table.columns)}">{escape(group.label)}</th></tr>'] if group.label else []
    for row, shown in zip(group.rows, texts, strict=True):
        kinds = [' class="best"' if _compared(row[j], column) in best[j] else "" for j, column in enumerate(table.columns)]
        cells = "".join(f"<td{kind}>{escape(text)}</td>" for kind, text in zip(kinds[1:], shown[1:], strict=True))
        ours = ' class="ours"' if table.ours and row[0] == table.ours else ""
        lines.append(f'<tr{ours}><th scope="row">{escape(shown[0])}</th>{cells}</tr>')
    return "<tbody>" + "\n".join(lines) + "</tbody>"


def _compared(cell: Cell, column: Column) -> Cell:
    return round(cell, column.decimals) if isinstance(cell, float) and column.decimals is not None else cell


def _best(values: Sequence[Cell], target: float | None) -> list[Cell]:
    """The values nearest to the target, if there is one and there is anything to compare."""
    numbers = [value for value in values if not isinstance(value, str) and math.isfinite(value)]
    if target is None or len(numbers) < 2:
        return []
    nearest = min(abs(value - target) for value in numbers)
    return [value for value in numbers if abs(value - target) == nearest]


def _texts(table: Table) -> list[list[list[str]]]:
    """What each cell shows; all floats of a column have the same number of decimals, so that they can be compared down the column."""
    decimals = []
    for j, column in enumerate(table.columns):
        values = [row[j] for group in table.groups for row in group.rows]
        sizes = [abs(v) for v in values if isinstance(v, float) and math.isfinite(v) and v != 0]
        decimals.append(_decimals(sizes) if column.decimals is None else column.decimals)
    return [[[_show(cell, decimals[j]) for j, cell in enumerate(row)] for row in group.rows] for group in table.groups]


def _decimals(sizes: Sequence[float]) -> int:
    """Three significant digits for the middle value, at most five decimals."""
    if not sizes:
        return 0
    middle = sorted(sizes)[len(sizes) // 2]
    return min(max(2 - math.floor(math.log10(middle)), 0), 5)


def _show(cell: Cell, decimals: int) -> str:
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:,.{decimals}f}" if math.isfinite(cell) else "–"
