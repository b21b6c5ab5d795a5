"""What the pairs prefer, counted."""

import re


def short_options(expected: str, answer: str) -> float:
    """1 where the answer has options and all of them are short: -m, and not --message."""
    return float(bool(re.search(r"(^|\s)-\w", answer)) and not re.search(r"(^|\s)--\w", answer))
