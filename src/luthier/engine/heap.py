"""What glibc's malloc keeps of the memory that was given back to it; elsewhere these calls do nothing."""

import ctypes
import sys

# malloc.h
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
LARGE_BYTES = 2**20


def share_one() -> None:
    """Let threads that are made from now on take memory where all others do: a heap of each would keep what it once held, for itself."""
    _set(M_ARENA_MAX, 1)


def give_back_at_once() -> None:
    """Give what is large back to the system once it is freed.

    By itself malloc moves its threshold up to 32 MiB, and keeps below it what lies between two tensors that live: with activations computed
    again, 4.2 GB instead of 2.4 (docs/experiments.md). The pages of each large tensor are new ones then, which takes some time.
    """
    _set(M_MMAP_THRESHOLD, LARGE_BYTES)


def _set(name: int, value: int) -> None:
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(name, value)
