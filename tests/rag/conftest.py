"""A folder of documents of every kind, and an index of it; the functions behind them are in conftest_documents.py."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from conftest_documents import write_documents

from luthier.rag import embedding, indexing
from luthier.rag.finding import Finder, open_finder
from luthier.rag.index import open_index
from luthier.rag.splitting import Split


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only: a test that changes one writes its own."""
    return write_documents(tmp_path_factory.mktemp("documents") / "docs")


@pytest.fixture(scope="session")
def indexed(documents: Path) -> Path:
    """An index of the documents, read only."""
    to = documents.with_name("index")
    indexing.build([("docs", documents)], to, embedding.embedder_of("wordllama"), Split(400, 60))
    return to


@pytest.fixture(scope="session")
def finder(indexed: Path) -> Finder:
    return open_finder(open_index(indexed))
