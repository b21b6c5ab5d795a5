"""Texts as vectors: static word vectors that come with the package wordllama, or a sentence encoder by its folder or hub id."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from luthier import files
from luthier.data.quality import vectors as static
from luthier.errors import CallError
from luthier.reporting import Reporter, Silent

DEFAULT = "wordllama"
Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Embedder:
    """Makes vectors of length 1. `identity` tells its weights from all others': vectors of two embedders cannot be compared."""

    name: str
    identity: str
    dimensions: int
    documents: Callable[[Sequence[str]], Vectors]
    questions: Callable[[Sequence[str]], Vectors]

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """One row for each text, `texts x dimensions`."""
        return self.documents(texts)


def embedder_of(name: str, reporter: Reporter | None = None) -> Embedder:
    """An embedder by its name: "wordllama" (no network, no torch), a folder or a hub id of a sentence encoder.

    Raises CallError where the package of the word vectors is missing, ModelError for an encoder that cannot be found or loaded.
    """
    if name == DEFAULT:
        return _static()
    from luthier.models import encoders, find, weights

    folder = find.find_encoder(name, reporter or Silent())
    encoder = encoders.load_encoder(folder)
    identity = f"{weights.fingerprint(folder)} {encoder.pooling} {encoder.most_tokens}"
    return Embedder(name, identity, encoder.dimensions, encoder.vectors, lambda texts: encoder.vectors(texts, "query"))


def _static() -> Embedder:
    if not static.are_there():
        raise CallError("needs the package wordllama", where=f"embedder {DEFAULT}", next_step='pip install "luthier[rag]", or --embedder FOLDER')
    identity = files.sha256(static.weights_file())
    return Embedder(DEFAULT, identity, static.vectors([""]).shape[1], static.vectors, static.vectors)
