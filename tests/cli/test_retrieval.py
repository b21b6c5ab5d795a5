"""luthier rag and data rag-mix, as a user calls them."""

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def docs() -> Path:
    folder = Path("docs")
    folder.mkdir()
    for town in ("Elgin", "Boston", "Joliet"):
        (folder / f"{town}.md").write_text(f"# {town}\n\nThe postman of {town} goes to {len(town)} Pierce Rd.\n", encoding="utf-8")
    (folder / "broken.pdf").write_bytes(b"no pdf")
    return folder


def test_index_says_what_it_did_and_renews_itself(call: Any, docs: Path) -> None:
    first = call("rag", "index", "docs", "--to", "index")
    assert first.code == 0, first.err
    assert "index: 3 passages of 3 documents; 3 embedded now" in first.out
    assert "set aside, listed in index/rejected.jsonl: 1 broken_pdf" in first.out
    (docs / "Elgin.md").unlink()
    again = json.loads(call("rag", "index", "--to", "index", "--json").out)
    assert (again["passages"], again["embedded"], again["removed"]) == (2, 0, 1)


def test_ask_shows_the_passages_and_says_where_nothing_fits(call: Any, docs: Path) -> None:
    call("rag", "index", "docs", "--to", "index")
    found = call("rag", "ask", "index", "Where does the postman of Boston go?")
    assert found.code == 0
    assert found.out.startswith("[1] docs/Boston.md:3  Boston\n    The postman of Boston")
    assert "below 0.4: an answer would say that it is not in the documents" in call("rag", "ask", "index", "Who was Nero?").out
    told = json.loads(call("rag", "ask", "index", "Who was Nero?", "--json").out)
    assert told["fits"] is False
    assert told["fit"] < 0.4


def test_rag_mix_writes_rows_and_says_how_many_of_each_kind(call: Any, docs: Path) -> None:
    call("rag", "index", "docs", "--to", "index")
    rows = [{"question": f"Where does the postman of {town} go?", "answer": f"{len(town)} Pierce Rd"} for town in ("Elgin", "Boston", "Joliet")]
    Path("q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = call("data", "rag-mix", "q.jsonl", "--index", "index", "--to", "raft", "--passages", "2", "--together", "1", "--hold-out", "34%")
    assert done.code == 0, done.err
    assert "raft/train.jsonl: 2 rows (2 gold)" in done.out
    assert "raft/held_out.jsonl: 1 questions on 1 documents that no row shows" in done.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("rag", "index", "--to", "new"), "names no documents"),
        (("rag", "index", "gone", "--to", "new"), "no such file or folder"),
        (("rag", "index", "docs", "--to", "new", "--size", "20"), "says too little"),
        (("rag", "index", "docs", "--to", "new", "--store", "faiss"), "there is no such store"),
        (("rag", "index", "docs", "--to", "docs"), "exists already"),
        (("rag", "index", "docs", "--to", "new", "--embedder", "no-such-encoder"), "is no model of the catalog"),
        (("rag", "index", "docs", "--to", "new", "--embedder", "org/encoder"), "org/encoder: could not be fetched from the hub"),
        (("rag", "index", "docs", "--to", "new", "--embedder", "org/encoder"), "as an embedder, wordllama"),
        (("rag", "ask", "docs", "Hi", "--budget", "300"), "--budget is for a model"),
        (("rag", "ask", "docs", "Hi"), "is no index"),
        (("rag", "ask", "nowhere", "Hi"), "is not there"),
        (("data", "rag-mix", "q.jsonl", "--index", "docs", "--to", "raft", "--without-gold", "110%"), "is not a share"),
        (("data", "rag-mix", "q.jsonl", "--index", "docs", "--to", "raft", "--together", "9"), "cannot share"),
        (("data", "rag-mix", "q.jsonl", "--index", "docs", "--to", "raft", "--missing", "guess"), "there is no such way"),
    ],
)
def test_a_wrong_call_says_what_to_do(arguments: tuple[str, ...], words: str, call: Any, docs: Path) -> None:
    done = call(*arguments)
    assert done.code in (1, 2)
    assert words in done.err
    assert "Try: " in done.err
    assert "Traceback" not in done.err
    assert not Path("new").exists()
    assert not Path("raft").exists()
