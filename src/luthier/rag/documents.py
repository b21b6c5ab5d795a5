"""Documents from disk: which files there are, and what stands in each, by its structure. What cannot be read is named with its reason."""

import hashlib
import itertools
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from luthier.config.data import SourceSettings
from luthier.data.read.places import readable, regular, shown
from luthier.data.read.rows import rows_of
from luthier.data.read.source import find_sources
from luthier.errors import DataError, LuthierError
from luthier.rag.splitting import Part
from luthier.records import Rejected, Row, Source

INSTALL = 'pip install "luthier[rag]"'
# Columns of a row that hold its text and its title, the first that is there.
TEXTS = ("text", "content", "passage", "page_content", "body", "document", "contents")
TITLES = ("title", "name", "heading", "id")
# A folder with these is an index: what Luthier wrote is no document, where an index lies among those it is made of.
OF_AN_INDEX = {"index.json", "passages.arrow"}
# What stands at the top of many Markdown files: facts about the file, between two lines of dashes.
FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?\n)(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
NOT_READ_IN_HTML = ("script", "style", "noscript", "template", "svg", "nav", "form")
Told = Callable[[Rejected], None]


class Unreadable(Exception):
    """A document that gives no text: a short name that is counted, and a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class File:
    """A document: how it is called, where it lies, and the hash of its bytes."""

    name: str
    path: Path
    sha256: str


def find(sources: Sequence[tuple[str, Path]], told: Told) -> list[File]:
    """The documents that the sources (a name, a place) hold now, sorted, each once. `told` gets what is set aside.

    A folder gives every file of a known kind below it; hidden ones are left out. Raises DataError where a source is not there, and where
    there is no document at all.
    """
    found: dict[Path, File] = {}
    for name, place in sources:
        for inside, path in _walk(name, place, told):
            if path.resolve() not in found:
                try:
                    regular(inside, path)  # a pipe would be waited for without end
                    with readable(inside, path):
                        found[path.resolve()] = File(inside, path, _sha256(path))
                except DataError as error:
                    told(Rejected("not_readable", error.problem, Source(inside, 1), ""))
    if not found:
        names = ", ".join(shown(name) for name, _ in sources)
        raise DataError(f"holds no document ({', '.join(READERS)})", where=names, next_step="name a file, or put documents into the folder")
    return sorted(found.values(), key=lambda one: one.name)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _walk(name: str, place: Path, told: Told) -> Iterator[tuple[str, Path]]:
    with readable(name, place):
        place.stat()
    if not place.is_dir():
        yield shown(name), place
        return

    def unreadable(error: OSError) -> None:
        with readable(name, Path(error.filename or place)):
            raise error

    for parent, folders, names in os.walk(place, onerror=unreadable):
        if set(names) >= OF_AN_INDEX:
            folders.clear()
            continue
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
        for file in sorted(one for one in names if not one.startswith(".")):
            path = Path(parent) / file
            inside = shown(os.path.join(name, str(path.relative_to(place))))
            if path.suffix.lower() in READERS:
                yield inside, path
            else:
                told(Rejected("unknown_kind", f"is none of {', '.join(READERS)}", Source(inside, 1), ""))


def read(file: File, told: Told) -> list[Part]:
    """The parts of a document in order. `told` gets rows and pages that give no text. Raises Unreadable where it has none at all."""
    reader = READERS.get(file.path.suffix.lower(), _plain)
    try:
        parts = [part for part in reader(file, told) if part.text.strip()]
    except LuthierError as error:
        if isinstance(error, DataError):
            raise Unreadable("not_readable", error.problem) from error
        raise
    if not parts:
        raise Unreadable("empty", "there is no text in it")
    return parts


def _text(file: File) -> str:
    """The text of a file. Raises Unreadable for what is no text, or is written in another encoding than UTF-8."""
    content = file.path.read_bytes()
    if b"\0" in content[:65536] or (content and b"\0" in content):
        raise Unreadable("binary", "holds NUL bytes: it is no text, or is written in UTF-16")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        problem = f"byte 0x{content[error.start]:02x} at offset {error.start:,} is not UTF-8"
        raise Unreadable("not_utf8", f"{problem} (iconv -f cp1252 -t UTF-8 mends Western files)") from error


def _plain(file: File, told: Told) -> list[Part]:
    return [Part("", _text(file), 1)]


def _markdown(file: File, told: Told) -> list[Part]:
    """Its front matter is no text; the title in it stands above all headings, but for a heading that says the same."""
    text, title = _without_front_matter(_text(file))
    parts = markdown_parts(text)
    if title and not any(part.title.partition(" > ")[0] == title for part in parts):
        return [replace(part, title=f"{title} > {part.title}" if part.title else title) for part in parts]
    return parts


def _without_front_matter(text: str) -> tuple[str, str]:
    """A text with blank lines for its YAML front matter, and the title that this gives."""
    found = FRONT_MATTER.match(text)
    try:
        facts = YAML(typ="safe", pure=True).load(found[1]) if found else None
    except (YAMLError, ValueError, KeyError, RecursionError):
        facts = None
    if found is None or not isinstance(facts, dict):  # two lines of dashes around a text
        return text, ""
    title = facts.get("title")
    return "\n" * found[0].count("\n") + text[found.end() :], title.strip() if isinstance(title, str) else ""


def markdown_parts(text: str, unit: str = "line") -> list[Part]:
    """The text between the headings of a Markdown text, each part with all headings above it. Its `first` is its line, or with another unit
    its number."""
    from markdown_it import MarkdownIt

    lines = text.split("\n")
    headings = []
    tokens = MarkdownIt("commonmark").disable("inline").parse(text)
    for token, inline in itertools.pairwise(tokens):
        if token.type == "heading_open" and token.map:
            headings.append((int(token.tag[1]), re.sub(r"[*_`]", "", inline.content).strip(), token.map[0], token.map[1]))
    parts = [("", 0, headings[0][2] if headings else len(lines))]
    above: list[tuple[int, str]] = []
    for place, (level, words, _, end) in enumerate(headings):
        above = [*(one for one in above if one[0] < level), (level, words)]
        parts.append((" > ".join(one[1] for one in above), end, headings[place + 1][2] if place + 1 < len(headings) else len(lines)))
    whole = [Part(title, "\n".join(lines[start:end]), start + 1, unit) for title, start, end in parts]
    filled = [part for part in whole if part.text.strip()] or [Part("", text, 1, unit)]
    return filled if unit == "line" else [Part(one.title, one.text, number, unit) for number, one in enumerate(filled, start=1)]


def _html(file: File, told: Told) -> list[Part]:
    try:
        from bs4 import BeautifulSoup
        from markdownify import markdownify
    except ImportError as error:
        raise _missing(file, error) from error
    soup = BeautifulSoup(_text(file), "html.parser")
    for tag in soup(list(NOT_READ_IN_HTML)):
        tag.decompose()
    return markdown_parts(markdownify(str(soup.body or soup), heading_style="ATX", strip=["a", "img"]), "section")


def _pdf(file: File, told: Told) -> list[Part]:
    try:
        from pypdf import PdfReader
    except ImportError as error:
        raise _missing(file, error) from error
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # what it complains of is in the rejection
    try:
        reader = PdfReader(file.path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable("encrypted", "is locked with a password: save a copy without one")
        pages = [page.extract_text() for page in reader.pages]
    except Unreadable:
        raise
    except Exception as error:  # a broken file ends in whatever error its bytes lead to
        raise Unreadable("broken_pdf", f"is no whole PDF ({type(error).__name__}: {str(error)[:120]})") from error
    if blank := [number for number, text in enumerate(pages, start=1) if not text.strip()]:
        if len(blank) == len(pages):
            raise Unreadable("no_text", f"none of its {len(pages)} pages holds text: it is scanned, and needs OCR (ocrmypdf)")
        named = ", ".join(map(str, blank[:8]))
        told(
            Rejected("page_without_text", f"pages {named}{' ...' if len(blank) > 8 else ''} hold no text (scanned?)", Source(file.name, blank[0]), "")
        )
    return [Part("", text, number, "page") for number, text in enumerate(pages, start=1)]


def _rows(file: File, told: Told) -> list[Part]:
    [source] = find_sources([SourceSettings(path=str(file.path))], Path(), file.path.parent)
    parts = []
    for row in rows_of(source, "utf-8", lambda note: None):
        if isinstance(row, Rejected):
            told(Rejected(row.reason, row.detail, Source(file.name, row.source.line), row.raw))
            continue
        text = _column(row, TEXTS)
        if not text.strip():
            told(Rejected("no_text", f"has no text in a column {', '.join(TEXTS[:4])} ...", Source(file.name, row.source.line), row.raw))
            continue
        parts.append(Part(_column(row, TITLES), text, row.source.line, "row"))
    return parts


def _column(row: Row, names: Sequence[str]) -> str:
    value: Any = next((row.value[name] for name in names if name in row.value), "")
    return value if isinstance(value, str) else "" if value is None else str(value)


def _missing(file: File, error: ImportError) -> LuthierError:
    return LuthierError(f"needs the package {error.name}", where=file.name, next_step=INSTALL)


READERS: dict[str, Callable[[File, Told], list[Part]]] = {
    # ending     what reads it
    ".md":       _markdown,
    ".markdown": _markdown,
    ".txt":      _plain,
    ".rst":      _plain,
    ".html":     _html,
    ".htm":      _html,
    ".pdf":      _pdf,
    ".jsonl":    _rows,
}  # fmt: skip
