"""One page for people: lines, pictures and tables as a single HTML file, and all of them as files beside it.

``report.html`` holds everything that it shows: no request leaves it, it has no script, and it can be sent as one file.
Pictures lie beside it as PNG and SVG, tables as CSV. What cannot be drawn is a line where it would have been.
"""

from __future__ import annotations

import base64
import csv
import io
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_gumbel.errors import UsageError, first_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "report.html"
# A table of more rows goes on in its file; a larger SVG is shown as PNG.
_MOST_ROWS, _MOST_BYTES = 200, 600_000
_DPI, _MOST_PIXELS = 130, 9000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """A picture."""

    name: str  # of its files
    draw: Callable[[], Figure | None]  # None if there is nothing to draw
    words: str  # what it shows, for those who cannot see it
    # By the gid of a part, what is told when that is pointed at.
    tips: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table of values that are JSON; ``None`` is an empty cell."""

    name: str  # of its file
    titles: Sequence[str]
    rows: Sequence[Sequence[Any]]  # in the file
    # Titles and rows for people; those of the file if omitted, and no table if they are empty.
    shown: tuple[Sequence[str], Sequence[Sequence[Any]]] | None = None


@dataclass(frozen=True)
class Section:
    """A part of the page: lines first, then pictures, text as it is (commands), tables."""

    title: str
    lines: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    code: str = ""
    tables: Sequence[Table] = ()


def write_page(folder: str | Path, title: str, sections: Sequence[Section], files: Mapping[str, str]) -> Path:
    """Write the page and its files.

    Args:
        folder: is made; files of the same names are replaced.
        title: of the page.
        sections: in their order.
        files: further text files, by name.

    Returns:
        The page.

    Raises:
        UsageError: the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        parts = [_section(folder, section) for section in sections]
        links = "".join(f'<a href="#{_anchor(each.title)}">{escape(each.title)}</a>' for each in sections)
        text = _PAGE.format(title=escape(title), style=_STYLE, links=links, parts="\n".join(parts))
        (folder / PAGE).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"path: {str(folder)!r} cannot be written: {first_line(error)}; give another folder"
        ) from error
    return folder / PAGE


def _section(folder: Path, section: Section) -> str:
    return "\n".join([
        f'<section id="{_anchor(section.title)}"><h2>{escape(section.title)}</h2>',
        *(f"<p>{escape(line)}</p>" for line in section.lines),
        *(_picture(folder, picture) for picture in section.pictures),
        *([f"<pre>{escape(section.code)}</pre>"] if section.code else []),
        *(_table(folder, table) for table in section.tables),
        "</section>",
    ])  # fmt: skip


def _anchor(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower()).strip("-")


def _picture(folder: Path, picture: Picture) -> str:
    import matplotlib

    try:
        figure = picture.draw()
        if figure is None:
            return ""
        kept = io.StringIO(), io.BytesIO()
        # Text stays text: it can be searched, and a picture is small.
        with matplotlib.rc_context({"svg.fonttype": "none"}):
            figure.savefig(kept[0], format="svg", metadata={"Date": None})
        figure.savefig(kept[1], format="png", dpi=min(_DPI, _MOST_PIXELS / max(figure.get_size_inches())))
        svg, png = (each.getvalue() for each in kept)
    # Whatever a person's network or a plotting library raises: the rest of the page is not lost to it.
    except Exception as error:
        trace = None if isinstance(error, UsageError) else error
        logger.warning("the picture %s is left out: %s", picture.name, first_line(error), exc_info=trace)
        return f'<p class="warning">{escape(f"{picture.words}: could not be drawn: {first_line(error)}")}</p>'
    (folder / f"{picture.name}.svg").write_text(svg, encoding="utf-8")
    (folder / f"{picture.name}.png").write_bytes(png)
    words = escape(picture.words, quote=True)
    if len(svg) <= _MOST_BYTES:
        # Ids are of a page, not of a picture; the tags of the page say what the picture is.
        shown = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{picture.name}-", svg[svg.index("<svg") :])
        for gid, tip in picture.tips.items():
            shown = shown.replace(
                f'<g id="{picture.name}-{gid}">', f'<g id="{picture.name}-{gid}"><title>{escape(tip)}</title>'
            )
        shown = shown.replace("<svg", f'<svg role="img" aria-label="{words}"', 1)
    else:
        data = base64.b64encode(png).decode()
        shown = f'<img alt="{words}" src="data:image/png;base64,{data}">'
    return f"<figure>{shown}<figcaption>{words} <small>{picture.name}.png, .svg</small></figcaption></figure>"


def _table(folder: Path, table: Table) -> str:
    with open(folder / f"{table.name}.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([table.titles, *table.rows])
    titles, rows = table.shown if table.shown is not None else (table.titles, table.rows)
    if not rows:
        return ""
    head = "".join(f"<th>{escape(str(title))}</th>" for title in titles)
    body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows[:_MOST_ROWS])
    more = f"; {len(rows) - _MOST_ROWS} rows more there" if len(rows) > _MOST_ROWS else ""
    return (
        f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        f"<p><small>{table.name}.csv{more}</small></p>"
    )


def _cell(value: Any) -> str:
    text = "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    # A number or a name is read at a glance: it is not broken.
    return f"<td{' class=whole' if len(text) <= 24 else ''}>{escape(text)}</td>"


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #16191d; max-width: 1080px; margin: 0 auto; padding: 0 1.2em 4em }
h1 { font-size: 1.5em; margin: 1em 0 .3em } h2 { font-size: 1.2em; margin: 2.2em 0 .5em; border-bottom: 1px solid #bbb }
nav a { margin-right: 1.2em; color: #1f5fa8 } p { max-width: 46em; margin: .5em 0 } small { color: #666 }
figure { margin: 1em 0 } svg, img { max-width: 100%; height: auto } figcaption { font-size: .85em; color: #444 }
.table { overflow-x: auto; margin: 1em 0 0 } table { border-collapse: collapse; font-size: .85em }
th, td { border-bottom: 1px solid #ddd; padding: .25em .8em .25em 0; text-align: left; vertical-align: top }
th { border-bottom-color: #555 } td { font-variant-numeric: tabular-nums }
td.whole { white-space: nowrap }
pre { background: #f3f4f5; padding: .7em 1em; overflow-x: auto; font-size: .85em } .warning { color: #a33000 }
@media print { nav { display: none } figure, tr { break-inside: avoid } }
"""
# The policy lets nothing be fetched, whatever a name in the page looks like.
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<style>{style}</style></head><body>
<h1>{title}</h1>
<nav>{links}</nav>
{parts}
</body></html>
"""
