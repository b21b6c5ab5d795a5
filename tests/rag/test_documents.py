"""Documents of every kind, by their structure; what cannot be read says why."""

import os
from pathlib import Path

import pytest
from conftest_documents import pdf_of

from luthier.errors import DataError
from luthier.rag import documents as docs
from luthier.rag.documents import Unreadable
from luthier.rag.splitting import Part, Split, passages_of
from luthier.records import Rejected


def read(path: Path) -> tuple[list[Part], list[Rejected]]:
    told: list[Rejected] = []
    [file] = docs.find([(path.name, path)], told.append)
    return docs.read(file, told.append), told


def test_markdown_is_cut_at_its_headings_and_each_part_has_those_above_it(documents: Path) -> None:
    parts, _ = read(documents / "returns.md")
    assert [part.title for part in parts] == ["Returns", "Returns > Refunds", "Returns > Exchanges"]
    lines = (documents / "returns.md").read_text(encoding="utf-8").split("\n")
    assert all(lines[part.first - 1 :][0] == part.text.split("\n")[0] for part in parts)


def test_a_heading_inside_a_fence_is_no_heading(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# One\n\n```sh\n# a comment\nls\n```\n\nSetext\n======\n\nend\n", encoding="utf-8")
    parts, _ = read(tmp_path / "a.md")
    assert [part.title for part in parts] == ["One", "Setext"]
    assert "# a comment" in parts[0].text


@pytest.mark.parametrize(
    ("body", "titles"),
    [("Text.\n\n## Fees\n\nNone.\n", ["Returns", "Returns > Fees"]), ("# Returns\n\nText.\n", ["Returns"])],
    ids=["the title is in the front matter alone", "the title is a heading too"],
)
def test_front_matter_is_no_passage_and_gives_the_title(body: str, titles: list[str], tmp_path: Path) -> None:
    front = "---\ntitle: Returns\ntags: [shop]\n---\n"
    (tmp_path / "a.md").write_text(front + body, encoding="utf-8")
    parts, _ = read(tmp_path / "a.md")
    assert [part.title for part in parts] == titles
    assert "tags" not in "".join(part.text for part in parts)
    [passage] = passages_of("a.md", parts[0], Split())
    assert (front + body).split("\n")[passage.first - 1] == "Text."  # its line is that of the file


@pytest.mark.parametrize(
    "text",
    [
        "---\nA line, between dashes.\n---\nMore.\n",
        "---\nkey: [\n---\nMore.\n",
        "---\nNo end.\n",
        f"---\ndeep: {'[' * 3000}\n---\nMore.\n",
        "---\nkey: !!bool z\n---\nMore.\n",
    ],
    ids=range(5),
)
def test_dashes_that_are_no_front_matter_lose_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(text, encoding="utf-8")
    parts, _ = read(tmp_path / "a.md")
    assert text.split("\n")[1] in "".join(f"{part.title}\n{part.text}" for part in parts)


def test_html_gives_its_text_under_its_headings_without_menus_and_styles(documents: Path) -> None:
    parts, _ = read(documents / "delivery.html")
    assert [(part.title, part.unit, part.first) for part in parts] == [("Delivery", "section", 1), ("Delivery > Abroad", "section", 2)]
    whole = "".join(part.text for part in parts)
    assert "two hours" in whole
    assert "Customs may open" in whole
    assert "Home" not in whole
    assert "color" not in whole


def test_a_pdf_gives_its_pages_and_names_those_without_text(documents: Path) -> None:
    parts, told = read(documents / "warranty.pdf")
    assert [(part.unit, part.first, part.text.strip()) for part in parts] == [
        ("page", 1, "The warranty of an amplifier lasts 3 years."),
        ("page", 3, "Strings and picks have no warranty at all."),
    ]
    assert [(one.reason, one.source.line) for one in told] == [("page_without_text", 2)]


def test_a_pipe_among_documents_is_named_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "a.txt").write_text("text", encoding="utf-8")
    told: list[Rejected] = []
    assert [one.name for one in docs.find([("docs", tmp_path)], told.append)] == ["docs/a.txt"]
    assert [(one.reason, one.detail) for one in told] == [("not_readable", "is a pipe, not a plain file")]


def test_rows_without_text_and_broken_rows_are_listed_and_the_others_kept(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"text": "one", "title": "T"}\n{"other": 1}\n{"text": \n{"content": "two"}\n{"text": "\\ud800"}\n', encoding="utf-8"
    )
    parts, told = read(tmp_path / "a.jsonl")
    assert [(part.title, part.text, part.first) for part in parts] == [("T", "one", 1), ("", "two", 4)]
    assert [one.source.line for one in told] == [2, 3, 5]


def damaged(folder: Path) -> dict[str, tuple[Path, str]]:
    made = {
        "empty": ("a.md", b" \n\n", "there is no text in it"),
        "binary": ("b.txt", b"abc\0def" * 50, "holds NUL bytes"),
        "latin": ("c.txt", "café".encode("cp1252") * 9, "byte 0xe9 at offset 3 is not UTF-8"),
        "cut pdf": ("d.pdf", pdf_of("text")[:60], "is no whole PDF"),
        "no pdf": ("e.pdf", b"hello", "is no whole PDF"),
        "scan": ("f.pdf", pdf_of("", ""), "none of its 2 pages holds text: it is scanned"),
        "rows": ("g.jsonl", b"", "is empty"),
    }
    found = {}
    for name, (file, content, words) in made.items():
        (folder / file).write_bytes(content)
        found[name] = (folder / file, words)
    return found


@pytest.mark.parametrize("name", ["empty", "binary", "latin", "cut pdf", "no pdf", "scan", "rows"])
def test_a_document_that_cannot_be_read_says_why(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, words = damaged(tmp_path)[name]
    with pytest.raises(Unreadable, match=words):
        read(path)
    assert caplog.records == []  # no library adds a line of its own


def test_a_locked_pdf_says_that_it_is_locked(tmp_path: Path) -> None:
    from pypdf import PdfReader, PdfWriter

    (tmp_path / "open.pdf").write_bytes(pdf_of("secret"))
    writer = PdfWriter(clone_from=PdfReader(tmp_path / "open.pdf"))
    writer.encrypt("word", algorithm="RC4-128")
    writer.write(tmp_path / "a.pdf")
    with pytest.raises(Unreadable, match="locked with a password"):
        read(tmp_path / "a.pdf")


def test_an_empty_folder_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no document .*\.md"):
        docs.find([("here", tmp_path)], lambda row: None)
    with pytest.raises(DataError, match="no such file or folder"):
        docs.find([("gone", tmp_path / "gone")], lambda row: None)


def test_other_files_of_a_folder_are_named_hidden_ones_left_out_and_links_read_once(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("text", encoding="utf-8")
    (tmp_path / "b.exe").write_bytes(b"x")
    (tmp_path / ".hidden.md").write_text("text", encoding="utf-8")
    os.symlink(tmp_path / "a.md", tmp_path / "c.md")
    told: list[Rejected] = []
    assert [file.name for file in docs.find([("docs", tmp_path)], told.append)] == ["docs/a.md"]
    assert [(one.reason, one.source.file) for one in told] == [("unknown_kind", "docs/b.exe")]
