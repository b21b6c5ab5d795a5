"""Importing torch and its companions fast."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Python's garbage collector waits while this lasts, and leaves out for good what was made until then.

    It would look again and again through all that the libraries make: a quarter of the seconds of the import (docs/experiments.md).
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
