"""HTML from plain values. Every text goes through `text`: rows and answers are untrusted."""

import re
from collections.abc import Sequence
from html import escape
from importlib import resources

# Characters that HTML cannot hold, and halves of a character that UTF-8 cannot.
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def text(value: object) -> str:
    """A value as HTML text: escaped, and without characters that break a page."""
    return escape(UNPRINTABLE.sub("\ufffd", str(value)))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table of texts; the first cell of a row is its header."""
    return raw_table(head, [[text(cell) for cell in row] for row in rows])


def raw_table(head: Sequence[str], rows: Sequence[Sequence[str]], row_classes: Sequence[str] = ()) -> str:
    """A table whose cells are HTML already."""
    header = "".join(f'<th scope="col">{text(name)}</th>' for name in head)
    body = ""
    for index, (first, *others) in enumerate(rows):
        kind = f' class="{row_classes[index]}"' if row_classes and row_classes[index] else ""
        body += f'<tr{kind}><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in others)}</tr>'
    return f'<div class="card wide"><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>'


def tiles(facts: Sequence[tuple[str, str]]) -> str:
    """A few numbers side by side."""
    return f'<dl class="tiles">{"".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in facts)}</dl>' if facts else ""


def folded(title: str, content: str) -> str:
    """Something long that opens on demand."""
    return f'<details class="card"><summary>{text(title)}</summary>{content}</details>'


def pre(value: object) -> str:
    return f"<pre>{text(value)}</pre>"


def section(title: str, content: str) -> str:
    return f"<section><h2>{text(title)}</h2>{content}</section>"


def page(title: str, body: str) -> str:
    """A whole page that needs nothing beside it: the style stands in it, and its policy lets nothing be loaded or run."""
    style = resources.files("luthier.diagnose").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{text(title)}</title>\n<style>\n{style}</style></head>\n<body>\n{body}\n</body></html>\n"
    )
