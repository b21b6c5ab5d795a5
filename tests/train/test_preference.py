"""Which other answer a labeled row is compared with: KTO's drift is measured on answers to other prompts."""

import pytest

from luthier.records import Source, TokenizedExample
from luthier.train.preference import JudgedRows

CASES = {
    # prompts of the rows, in order      the row whose answer each is compared with (None: no other prompt is there)
    "every row another":                ([1, 2, 3],             [2, 0, 1]),
    "pairs cut into two rows":          ([1, 1, 2, 2, 3, 3],    [5, 5, 1, 1, 3, 3]),
    "rows that count three times":      ([1, 1, 1, 2, 2, 2],    [5, 5, 5, 2, 2, 2]),
    "the last like the first":          ([1, 2, 3, 1, 1],       [2, 0, 1, 2, 2]),
    "two in the middle of one":         ([1, 2, 1],             [1, 0, 1]),
    "one prompt":                       ([1, 1, 1],             None),
    "one row":                          ([1],                   None),
    "no row":                           ([],                    None),
}  # fmt: skip


def rows_of(prompts: list[int]) -> JudgedRows:
    """Row n asks its prompt and answers 100 + n."""
    examples = [TokenizedExample([prompt, 100 + place], [False, True], Source("rows", place + 1)) for place, prompt in enumerate(prompts)]
    return JudgedRows(examples, [place % 2 == 0 for place in range(len(prompts))], longest=8)


@pytest.mark.parametrize(("prompts", "expected"), CASES.values(), ids=CASES)
def test_a_row_is_compared_with_the_nearest_before_it_that_asks_something_else(prompts: list[int], expected: list[int] | None) -> None:
    rows = rows_of(prompts)
    found = [row.mismatched for row in rows]
    if expected is None:
        assert found == [None] * len(prompts)
    else:
        assert [one.token_ids for one in found if one] == [[prompt, 100 + other] for prompt, other in zip(prompts, expected, strict=True)]
        assert all(prompts[other] != prompt for prompt, other in zip(prompts, expected, strict=True))
