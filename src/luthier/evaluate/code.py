"""Answers that are code: what of them is run, and pass@k."""

import math
import re

from luthier.evaluate import sandbox

FENCE = re.compile(r"```[ \t]*\w*[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL)


def without_fence(answer: str) -> str:
    """The first fenced block of an answer, or all of an answer that has none."""
    found = FENCE.search(answer)
    return found[1] if found else answer


def passes(tests: str, answer: str) -> float:
    """1 where the answer's code, and then the tests, run to their end in the sandbox (sandbox.py)."""
    return float(sandbox.run(f"{without_fence(answer)}\n\n{tests}\n").passed)


def pass_at(k: int, answers: int, right: int) -> float:
    """pass@k of a question of whose `answers` so many are right: 1 - C(n - c, k) / C(n, k) (Chen 2021, arXiv:2107.03374, section 2.1)."""
    return 1 - math.comb(answers - right, k) / math.comb(answers, k)
