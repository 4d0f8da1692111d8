"""A page of headings, paragraphs, tables and pictures, as one HTML file or as Markdown."""

from __future__ import annotations

import base64
import html
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

Cell = str | Sequence[str]  # several lines make a list


@dataclass(frozen=True)
class Heading:
    """A section begins; `name` is what links lead to."""

    text: str
    name: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Links:
    """Links to sections of the page: texts by name."""

    targets: dict[str, str]


@dataclass(frozen=True)
class Command:
    """What to type."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows under headers; the first cell of a row names it.

    Args:
        caption: above the table.
        header: of each column.
        rows: as many cells each.
        cards: on a narrow screen a row becomes a card, for cells of text rather than numbers.
        marked: column whose cells are shown as labels, coloured by what they say.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    cards: bool = False
    marked: int | None = None


@dataclass(frozen=True)
class Picture:
    """A PNG file; alt says what it shows to who cannot see it."""

    path: Path
    alt: str
    caption: str


@dataclass(frozen=True)
class Drawing:
    """A picture of vectors within the page.

    Args:
        svg: an <svg> element, see `rvi_fast._figures.inline_svg`.
        alt: what it shows, to who cannot see it.
        title: above it.
        caption: below it.
        wide: on a narrow screen it scrolls, as it would be too small to read.
    """

    svg: str
    alt: str
    title: str = ""
    caption: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Gallery:
    """Drawings side by side, as many as there is room for."""

    drawings: Sequence[Drawing]


_WIDE = 900  # pixels of a picture that scrolls on a narrow screen

Block = Heading | Paragraph | Links | Command | Table | Picture | Gallery

_STYLE = """
:root {
  color-scheme: light dark;
  --text: #1c2330; --soft: #566072; --page: #ffffff; --raised: #f5f7fa; --line: #d8dee8;
  --link: #0b57a4; --yes: #15663a; --no: #a3211b; --partly: #7a5200; --none: #566072;
  --blue: #0072b2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --text: #e4e8ef; --soft: #a5b0c2; --page: #14181f; --raised: #1d232d; --line: #39424f;
    --link: #8ab8f0; --yes: #6fd39b; --no: #ff9a90; --partly: #ecc069; --none: #a5b0c2;
    --blue: #3d9fdb;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
main { max-width: 72rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1, h2, h3 { line-height: 1.25; text-wrap: balance; }
h1 { font-size: 1.8rem; margin: 0 0 .75rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .25rem; }
p { max-width: 46rem; margin: .6rem 0; overflow-wrap: anywhere; }
a { color: var(--link); }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1rem; margin: 1rem 0; padding: 0; }
nav ul, td ul { list-style: none; }
pre {
  white-space: pre-wrap; overflow-wrap: anywhere; margin: .75rem 0; padding: .6rem .8rem;
  background: var(--raised); border: 1px solid var(--line); border-radius: .4rem;
  font-size: .875rem;
}
figure { margin: 1rem 0; }
figure img {
  display: block; max-width: 100%; height: auto; padding: .25rem; background: #fff;
  border: 1px solid var(--line); border-radius: .4rem;
}
.gallery { display: flex; flex-wrap: wrap; gap: 1rem 2rem; margin: 1rem 0; }
.gallery figure { margin: 0; min-width: 0; max-width: 100%; }
.gallery svg { display: block; max-width: 100%; height: auto; fill: currentColor; }
.gallery svg * { stroke-linejoin: round; stroke-linecap: butt; }
.title { margin: 0; font-weight: 600; font-size: .95rem; overflow-wrap: anywhere; }
figcaption, .caption { padding: .35rem 0; color: var(--soft); font-size: .875rem; }
.caption { margin: 1rem 0 0; }
.scroll { overflow-x: auto; margin: 0 0 .75rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .75rem .35rem 0; text-align: left; vertical-align: top; }
tr { border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 600; }
tbody th { font-weight: 600; }
.numbers td, .numbers tbody th { white-space: nowrap; }
td ul { margin: 0; padding: 0; }
.cards table { width: 100%; }
.cards td:has(ul) { width: 45%; }
.cards td li { padding-left: 1.2em; text-indent: -1.2em; }
.mark { font-weight: 700; white-space: nowrap; }
.mark[data-is^="holds"] { color: var(--yes); }
.mark[data-is^="does not hold"] { color: var(--no); }
.mark[data-is^="partly"] { color: var(--partly); }
.mark[data-is="no results"] { color: var(--none); }
@media screen and (max-width: 48rem) {
  .cards thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  .cards table, .cards tbody, .cards tr, .cards th, .cards td { display: block; }
  .cards tr { padding: .6rem 0; }
  .cards th, .cards td { width: auto !important; padding: .15rem 0; overflow-wrap: anywhere; }
  /* panels side by side would be too small to read */
  figure { overflow-x: auto; }
  .gallery svg.wide { max-width: none; }
  figure img.wide { max-width: none; width: 46rem; }
  .cards td::before { content: attr(data-label) ": "; color: var(--soft); }
}
@media print {
  :root {
    color-scheme: light; --text: #000; --soft: #444; --page: #fff; --raised: #fff; --line: #bbb;
    --link: #000; --blue: #0072b2; --yes: #15663a; --no: #a3211b; --partly: #7a5200; --none: #444;
  }
  main { max-width: none; padding: 0; }
  nav { display: none; }
  body { font-size: 10pt; }
  .scroll { overflow: visible; }
  .numbers td, .numbers tbody th { white-space: normal; }
  figure, tr { break-inside: avoid; }
  h2, h3, .caption { break-after: avoid; }
}
"""


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """One page that needs no other file."""
    body = "\n".join(map(_html, blocks))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{html.escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _html(block: Block) -> str:
    match block:
        case Heading(text, name, level):
            return f'<h{level} id="{html.escape(name)}">{html.escape(text)}</h{level}>'
        case Paragraph(text):
            return f"<p>{html.escape(text)}</p>"
        case Links(targets):
            items = "".join(
                f'<li><a href="#{html.escape(name)}">{html.escape(text)}</a></li>'
                for name, text in targets.items()
            )
            return f'<nav aria-label="Sections"><ul>{items}</ul></nav>'
        case Command(text):
            return f"<pre><code>{html.escape(text)}</code></pre>"
        case Picture(path, alt, caption):
            content = path.read_bytes()
            width, height = png_size(content)
            kind, vectors = "png", path.with_suffix(".svg")
            if vectors.is_file():
                kind, content = "svg+xml", vectors.read_bytes()
            source = base64.b64encode(content).decode("ascii")
            wide = ' class="wide"' if width > _WIDE else ""
            return (
                f'<figure><img{wide} src="data:image/{kind};base64,{source}" width="{width}" '
                f'height="{height}" alt="{html.escape(alt)}">'
                f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            )
        case Gallery(drawings):
            return f'<div class="gallery">{"".join(map(_html_drawing, drawings))}</div>'
        case Table():
            return _html_table(block)


def _html_drawing(drawing: Drawing) -> str:
    svg, alt = drawing.svg.removeprefix("<svg"), html.escape(drawing.alt)
    width = re.match(r' width="(\d+)"', svg)
    wide = ' class="wide"' if drawing.wide else ""
    title = f'<p class="title">{html.escape(drawing.title)}</p>' if drawing.title else ""
    caption = f"<figcaption>{html.escape(drawing.caption)}</figcaption>" if drawing.caption else ""
    # captions are as wide as what is above them
    size = f' style="width: {width[1]}px"' if width else ""
    # the words within are those of axes and their ticks, which say nothing when they are read aloud
    return f'<figure{size}>{title}<svg{wide} role="img" aria-label="{alt}"{svg}{caption}</figure>'


def _html_table(table: Table) -> str:
    head = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in table.header)
    rows = []
    for row in table.rows:
        cells = [f'<th scope="row">{_html_cell(row[0])}</th>']
        for column, cell in enumerate(row[1:], 1):
            label = html.escape(table.header[column])
            content = _html_cell(cell)
            if column == table.marked:
                content = f'<span class="mark" data-is="{content}">{content}</span>'
            cells.append(f'<td data-label="{label}">{content}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    kind = "cards" if table.cards else "numbers"
    caption = html.escape(table.caption)
    # a wide table scrolls on its own, by keyboard too, and not the page
    return (
        f'<p class="caption">{caption}</p>\n'
        f'<div class="scroll {kind}" role="region" aria-label="{caption}" tabindex="0">\n'
        f'<table aria-label="{caption}">\n<thead><tr>{head}</tr></thead>\n'
        "<tbody>\n" + "\n".join(rows) + "\n</tbody></table></div>"
    )


def _html_cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return html.escape(cell)
    return f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in cell)}</ul>" if cell else ""


def png_size(content: bytes) -> tuple[int, int]:
    """Width and height in pixels.

    Raises:
        ValueError: not a PNG file.
    """
    if content[:8] != b"\x89PNG\r\n\x1a\n" or content[12:16] != b"IHDR" or len(content) < 24:
        raise ValueError("expected a PNG file")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def to_markdown(title: str, blocks: Sequence[Block], directory: Path) -> str:
    """The same; pictures are links from a file in `directory`."""
    return (
        "\n\n".join([f"# {_plain(title)}", *(_markdown(each, directory) for each in blocks)]) + "\n"
    )


def _markdown(block: Block, directory: Path) -> str:
    match block:
        case Heading(text, name, level):
            return f'<a id="{html.escape(name)}"></a>\n\n{"#" * level} {_plain(text)}'
        case Paragraph(text):
            return _plain(text)
        case Links(targets):
            return " · ".join(f"[{_plain(text)}](#{name})" for name, text in targets.items())
        case Command(text):
            return f"```\n{text}\n```"
        case Picture(path, alt, caption):
            link = Path(os.path.relpath(path, directory)).as_posix()
            return f"![{_plain(alt)}](<{link}>)\n\n{_plain(caption)}"
        case Gallery(drawings):
            parts = ((each.title, each.alt, each.caption) for each in drawings)
            return "\n\n".join(": ".join(_plain(text) for text in own if text) for own in parts)
        case Table(caption, header, rows):
            lines = [header, ["---"] * len(header), *rows]
            table = "\n".join(f"| {' | '.join(map(_markdown_cell, line))} |" for line in lines)
            return f"{_plain(caption)}\n\n{table}"


def _markdown_cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return cell if cell == "---" else _plain(cell)
    return "<br>".join(map(_plain, cell))


def _plain(text: str) -> str:
    """Text that Markdown takes as it is."""
    return re.sub(r"([\\`*_\[\]<>|~])", r"\\\1", text.replace("\n", " "))
