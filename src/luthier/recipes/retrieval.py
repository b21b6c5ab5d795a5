"""`luthier rag index`, and `rag ask` without a model: documents made findable, and looked up. No torch, unless an encoder needs it."""

from collections.abc import Sequence
from pathlib import Path

from luthier.errors import CallError
from luthier.rag import embedding, indexing
from luthier.rag.finding import Retrieved, open_finder
from luthier.rag.index import open_index, read_facts
from luthier.rag.indexing import Indexed
from luthier.rag.splitting import Split
from luthier.reporting import Reporter, Silent


def index(
    sources: Sequence[str],
    to: Path,
    *,
    embedder: str | None = None,
    split: Split | None = None,
    store: str = "auto",
    reporter: Reporter | None = None,
) -> Indexed:
    """Make the index `to` of files and folders, or renew it; without sources, of those it was made of.

    Raises CallError where `to` is something else or was made with another embedder, DataError where nothing can be read.
    """
    reporter = reporter or Silent()
    before = read_facts(to) if indexing.embedder_name(to) else None
    if not sources and before is None:
        raise CallError("names no documents, and there is no index yet", where="luthier rag index", next_step=f"luthier rag index DOCS --to {to}")
    named = [(source, Path(source).expanduser()) for source in sources]
    maker = embedding.embedder_of(embedder or (before.embedder if before else embedding.DEFAULT), reporter)
    return indexing.build(named, to, maker, split or (before.split if before else Split()), store, reporter)


def look_up(folder: Path, question: str, most: int, reporter: Reporter | None = None, *, reranker: str | None = None) -> Retrieved:
    """The passages of an index that a question finds, best first."""
    if not question.strip():
        raise CallError("is empty", where="question", next_step='luthier rag ask INDEX "..."')
    return open_finder(open_index(folder), reporter, reranker=reranker).find(question, most)
