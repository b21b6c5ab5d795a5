"""The layout of an update: nothing is lost, nothing is doubled, and no label falls on the seam."""

from conftest_engine import ragged
from hypothesis import given
from hypothesis import strategies as some

from luthier.engine.attention import length_groups
from luthier.engine.batches import document, lay_out, shared_prefix
from luthier.records import Source, TokenizedExample


@given(seed=some.integers(0, 500), rows=some.integers(1, 9), prefix=some.integers(0, 40), budget=some.integers(1, 300))
def test_every_trained_token_is_predicted_once_from_the_token_before_it(seed: int, rows: int, prefix: int, budget: int) -> None:
    examples = ragged(seed, rows, prefix)
    step = lay_out(examples, micro_batch_tokens=budget, share_prefixes=True)
    found = []
    for documents in step.micro_batches:
        for one in documents:
            whole = step.prefix + one.inputs
            assert all(0 <= row < len(one.inputs) for row in one.rows)
            found += [(tuple(whole[: len(step.prefix) + row + 1]), target) for row, target in zip(one.rows, one.targets, strict=True)]
    wanted = [
        (tuple(example.token_ids[:index]), example.token_ids[index])
        for example in examples
        for index, on in enumerate(example.trained)
        if on and index
    ]
    assert sorted(found) == sorted(wanted)
    assert step.trained_tokens == len(wanted)


def test_a_prefix_ends_before_the_token_that_predicts_the_first_label() -> None:
    common = list(range(3, 23))
    examples = [TokenizedExample([*common, 30 + n, 40], [False] * 20 + [True, True], Source("rows", n)) for n in range(4)]
    assert shared_prefix(examples) == common[:19]
    one = document(examples[0], 19)
    assert (one.inputs, one.rows, one.targets) == ([22, 30], [0, 1], [30, 40])


def test_a_short_common_beginning_is_not_worth_a_pass() -> None:
    assert lay_out(ragged(1, 4, prefix=5), micro_batch_tokens=4096, share_prefixes=True).prefix == []
    assert lay_out(ragged(1, 1, prefix=50), micro_batch_tokens=4096, share_prefixes=True).prefix == []


@given(some.lists(some.integers(1, 1000), min_size=1, max_size=30))
def test_groups_hold_all_documents_and_long_ones_stand_alone(lengths: list[int]) -> None:
    groups = length_groups(sorted(lengths))
    assert [length for group in groups for length in group] == sorted(lengths)
    assert all(len(group) == 1 or max(group) <= 256 for group in groups)
