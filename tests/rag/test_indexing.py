"""An index renews what changed and nothing else, goes on after a stop, names its embedder, and is never half of one."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest_documents import OPENING, RETURNS, write_documents

from luthier import files
from luthier.errors import CallError, DataError, RunError
from luthier.rag import embedding, indexing
from luthier.rag.embedding import Embedder, Vectors
from luthier.rag.finding import open_finder
from luthier.rag.index import open_index, read_facts
from luthier.rag.indexing import Indexed
from luthier.rag.splitting import Split

SPLIT = Split(400, 60)


class Counting:
    """The default embedder, and what it was asked for; it fails after so many texts."""

    def __init__(self, fails_after: int | None = None) -> None:
        self.texts: list[str] = []
        self._plain, self._fails_after = embedding.embedder_of("wordllama"), fails_after

    def embedder(self) -> Embedder:
        return dataclasses.replace(self._plain, documents=self._documents)

    def _documents(self, texts: Sequence[str]) -> Vectors:
        if self._fails_after is not None and len(self.texts) + len(texts) > self._fails_after:
            raise KeyboardInterrupt
        self.texts += texts
        return self._plain.documents(texts)


def make(folder: Path, to: Path, counting: Counting | None = None, split: Split = SPLIT) -> Indexed:
    return indexing.build([("docs", folder)], to, (counting or Counting()).embedder(), split)


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    return write_documents(tmp_path / "docs")


def test_every_kind_is_found_again_with_its_place(indexed: Path, documents: Path) -> None:
    index = open_index(indexed)
    places = {passage.place: passage for passage in index.passages(range(index.facts.passages))}
    assert places["docs/returns.md:7"].text == "A refund arrives after 5 working days on the card that paid."
    assert places["docs/returns.md:7"].title == "Returns > Refunds"
    assert places["docs/warranty.pdf page 3"].text == "Strings and picks have no warranty at all."
    assert places["docs/words.jsonl:2"].title == "fret"
    assert places["docs/delivery.html section 2"].title == "Delivery > Abroad"
    rejected = [json.loads(line) for line in (indexed / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["reason"] for row in rejected] == ["page_without_text"]


def test_only_what_changed_is_embedded_again_and_what_is_gone_leaves(docs: Path, tmp_path: Path) -> None:
    to = tmp_path / "index"
    first = make(docs, to)
    assert first.embedded == first.passages
    assert first.documents == 5
    again = Counting()
    assert (make(docs, to, again).embedded, again.texts) == (0, [])
    (docs / "hours.txt").unlink()
    (docs / "returns.md").write_text(RETURNS.replace("5 working days", "6 working days"), encoding="utf-8")
    (docs / "new.md").write_text("Gift cards never expire.", encoding="utf-8")
    changed = Counting()
    done = make(docs, to, changed)
    assert sorted(changed.texts) == sorted(
        ["Gift cards never expire.", "Returns > Refunds\nA refund arrives after 6 working days on the card that paid."]
    )
    assert (done.new, done.changed, done.removed) == (1, 1, 1)
    index = open_index(to)
    assert {one.name for one in index.facts.documents} == {
        f"docs/{name}" for name in ("delivery.html", "new.md", "returns.md", "warranty.pdf", "words.jsonl")
    }
    fresh = tmp_path / "fresh"
    make(docs, fresh)
    other = open_index(fresh)
    assert index.passages(range(done.passages)) == other.passages(range(done.passages))
    assert np.array_equal(index.vectors.rows(0, done.passages), other.vectors.rows(0, done.passages))
    assert np.array_equal(index.words.scores("refund days"), other.words.scores("refund days"))


def test_a_stopped_call_is_gone_on_with_and_leaves_the_old_index_whole(docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "KEPT_AT_ONCE", 2)
    to = tmp_path / "index"
    whole = make(docs, tmp_path / "whole").passages
    stopped = Counting(fails_after=5)
    with pytest.raises(KeyboardInterrupt):
        make(docs, to, stopped)
    assert not to.exists()
    assert len(stopped.texts) == 4
    rest = Counting()
    assert make(docs, to, rest).passages == whole
    assert len(rest.texts) == whole - 4
    assert not set(rest.texts) & set(stopped.texts)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    (docs / "new.md").write_text("# A\n\none\n\n# B\n\ntwo\n\n# C\n\nthree", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        make(docs, to, Counting(fails_after=2))
    assert open_index(to).facts.passages == whole
    assert make(docs, to).passages == whole + 3


def test_sources_add_up_and_one_that_is_gone_leaves(docs: Path, tmp_path: Path) -> None:
    to, more = tmp_path / "index", tmp_path / "more"
    more.mkdir()
    (more / "gift.md").write_text("Gift cards never expire.", encoding="utf-8")
    make(docs, to)
    embedder = embedding.embedder_of("wordllama")
    added = indexing.build([("more", more)], to, embedder, SPLIT)
    assert (added.documents, added.new, added.removed) == (6, 1, 0)
    (more / "gift.md").unlink()
    more.rmdir()
    assert indexing.build([], to, embedder, SPLIT).removed == 1


def test_a_name_that_was_mistyped_is_no_deletion(docs: Path, tmp_path: Path) -> None:
    make(docs, tmp_path / "index")
    with pytest.raises(DataError, match="there is no such file or folder"):
        indexing.build([("dcos", tmp_path / "dcos")], tmp_path / "index", embedding.embedder_of("wordllama"), SPLIT)
    assert open_index(tmp_path / "index").facts.sources == [("docs", str(docs))]


def test_what_was_set_aside_stays_listed_when_its_document_is_not_read_again(docs: Path, tmp_path: Path) -> None:
    for _ in range(3):
        assert make(docs, tmp_path / "index").rejected == {"page_without_text": 1}
    (docs / "warranty.pdf").unlink()
    assert make(docs, tmp_path / "index").rejected == {}


def test_an_index_among_its_documents_is_none_of_them(docs: Path) -> None:
    first = make(docs, docs / "index")
    assert (make(docs, docs / "index").documents, make(docs, docs / "index").rejected) == (first.documents, first.rejected)


def test_an_index_names_its_embedder_and_refuses_another(indexed: Path, documents: Path, tmp_path: Path) -> None:
    plain = embedding.embedder_of("wordllama")
    assert read_facts(indexed).embedder == "wordllama"
    other = dataclasses.replace(plain, name="mini", identity="another")
    with pytest.raises(CallError, match=r"was made with the embedder wordllama, and this is mini: their vectors cannot be compared"):
        indexing.build([("docs", documents)], indexed, other, SPLIT)
    with pytest.raises(CallError, match="another version of it"):
        open_index(indexed).check_embedder(dataclasses.replace(plain, identity="newer"))


def test_the_same_document_twice_is_kept_once_and_named(docs: Path, tmp_path: Path) -> None:
    (docs / "zz-copy.txt").write_text(OPENING, encoding="utf-8")
    done = make(docs, tmp_path / "index")
    assert done.duplicates == {"docs/zz-copy.txt": "docs/hours.txt"}
    (docs / "hours.txt").unlink()  # the other one takes its place
    assert make(docs, tmp_path / "index").duplicates == {}
    found = open_finder(open_index(tmp_path / "index")).find("When does the shop in Elgin open?", 1).found
    assert found[0].passage.document == "docs/zz-copy.txt"


def test_bad_documents_are_listed_and_the_good_ones_kept(docs: Path, tmp_path: Path) -> None:
    (docs / "broken.pdf").write_bytes(b"%PDF-1.4 broken")
    (docs / "binary.txt").write_bytes(b"\0\1\2" * 100)
    done = make(docs, tmp_path / "index")
    assert (done.documents, done.rejected) == (5, {"binary": 1, "broken_pdf": 1, "page_without_text": 1})


def test_a_folder_without_text_and_a_place_that_is_taken_are_refused(docs: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.txt").write_bytes(b"\0" * 10)
    with pytest.raises(DataError, match="none of the documents gives text"):
        make(tmp_path / "bad", tmp_path / "index")
    assert not (tmp_path / "index").exists()
    with pytest.raises(CallError, match="exists already"):
        make(docs, docs)
    with pytest.raises(CallError, match="is no index"):
        open_index(docs)


def damage_facts(folder: Path) -> None:
    files.write_json(folder / "index.json", {"schema": 1})


def damage_schema(folder: Path) -> None:
    files.write_json(folder / "index.json", {"schema": 99})


def damage_passages(folder: Path) -> None:
    (folder / "passages.arrow").write_bytes((folder / "passages.arrow").read_bytes()[:200])


def damage_words(folder: Path) -> None:
    (folder / "words" / "vocab.index.json").unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [(damage_facts, "is damaged"), (damage_schema, "of schema 99"), (damage_passages, "cannot be read"), (damage_words, "cannot be read")],
)
def test_a_damaged_index_says_so(damage: Callable[[Path], None], words: str, docs: Path, tmp_path: Path) -> None:
    make(docs, tmp_path / "index")
    damage(tmp_path / "index")
    with pytest.raises(RunError, match=words):
        open_index(tmp_path / "index")


def test_a_store_that_is_not_known_or_not_installed_is_refused(docs: Path, tmp_path: Path) -> None:
    with pytest.raises(CallError, match="there is no such store"):
        indexing.build([("docs", docs)], tmp_path / "index", Counting().embedder(), SPLIT, "faiss")
    assert not (tmp_path / "index").exists()
