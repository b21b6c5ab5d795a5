"""What a text means, as a vector: the mean of static word vectors that come with the package wordllama. No network, no torch."""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.errors import DataError

_WEIGHTS, _TOKENIZER = "weights/l2_supercat_256.safetensors", "tokenizers/l2_supercat_tokenizer_config.json"
_BATCH = 512  # texts; their tokens' vectors take 50 MB at 100 tokens a text
_MOST_TOKENS = 512


def vectors(texts: Sequence[str]) -> NDArray[np.float32]:
    """One row of length 1 for each text (zeros where it has no words), `texts x 256`; at most the first 512 tokens count."""
    weights, tokenizer = _opened()
    rows = np.zeros((len(texts), weights.shape[1]), np.float32)
    for start in range(0, len(texts), _BATCH):
        ids = [found.ids for found in tokenizer.encode_batch_fast(list(texts[start : start + _BATCH]), add_special_tokens=False)]
        lengths = np.array([len(of_text) for of_text in ids])
        worded = np.flatnonzero(lengths)
        if len(worded):
            begins = np.concatenate([[0], np.cumsum(lengths[worded])[:-1]])
            taken = weights[np.fromiter((one for of_text in ids for one in of_text), np.int64, int(lengths.sum()))]
            rows[start + worded] = np.add.reduceat(taken, begins, axis=0)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    return rows


def are_there() -> bool:
    """Whether the word vectors are installed."""
    return find_spec("wordllama") is not None


def weights_file() -> Path:
    """The file of the word vectors. Raises DataError where the package is missing."""
    package = find_spec("wordllama")
    if package is None or package.origin is None:
        raise DataError("word vectors need the package wordllama", where="checks", next_step='pip install "luthier[data]"')
    return Path(package.origin).parent / _WEIGHTS


@cache
def _opened() -> tuple[NDArray[np.float32], Any]:
    """The weights (32,000 x 256) and the tokenizer; the package itself is not imported, its files are all that is needed."""
    weights = weights_file()
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(weights.parents[1] / _TOKENIZER))
    tokenizer.no_padding()
    tokenizer.enable_truncation(_MOST_TOKENS)
    return load_file(weights)["embedding.weight"].astype(np.float32), tokenizer
