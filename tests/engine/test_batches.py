"""The layout of an update: nothing is lost, nothing is doubled, no label falls on the seam, and what is shared runs once."""

from conftest_engine import ragged
from hypothesis import given
from hypothesis import strategies as some

from luthier.engine.batches import Document, Step, lay_out
from luthier.engine.packed import ALONE_TOKENS, length_groups
from luthier.records import Source, TokenizedExample


def whole(step: Step, one: Document) -> list[int]:
    """A document's tokens with those of the prefix parts on its path."""
    parts = {part.place: part for parts in step.passes for part in parts}
    before = [token for place in one.path for token in parts[place].inputs]
    assert one.first_position == len(before)
    return before + one.inputs


def row(tokens: list[int], trained: int, number: int = 1) -> TokenizedExample:
    """A row whose last `trained` tokens are trained."""
    return TokenizedExample(tokens, [False] * (len(tokens) - trained) + [True] * trained, Source("rows", number))


@given(seed=some.integers(0, 500), rows=some.integers(1, 9), prefix=some.integers(0, 90), budget=some.integers(1, 300))
def test_every_trained_token_is_predicted_once_from_the_tokens_before_it(seed: int, rows: int, prefix: int, budget: int) -> None:
    # Two beginnings, of which one continues the other for some rows: a tree of two levels.
    examples = ragged(seed, rows, prefix) + ragged(seed + 1, rows, prefix)
    step = lay_out(examples, micro_batch_tokens=budget, share_prefixes=True)
    found = []
    for documents in step.micro_batches:
        for one in documents:
            tokens = whole(step, one)
            assert all(0 <= place < len(one.inputs) for place in one.rows)
            found += [(tuple(tokens[: one.first_position + place + 1]), target) for place, target in zip(one.rows, one.targets, strict=True)]
    wanted = [
        (tuple(example.token_ids[:index]), example.token_ids[index])
        for example in examples
        for index, on in enumerate(example.trained)
        if on and index
    ]
    assert sorted(found) == sorted(wanted)
    assert step.trained_tokens == len(wanted)


def test_a_prefix_ends_before_the_token_that_predicts_the_first_label() -> None:
    common = list(range(3, 103))
    step = lay_out([row([*common, 200 + n, 40], 2) for n in range(4)], micro_batch_tokens=4096, share_prefixes=True)
    assert [part.inputs for parts in step.passes for part in parts] == [common[:99]]
    one = step.micro_batches[0][0]
    assert (one.inputs, one.rows, one.targets) == ([102, 200], [0, 1], [200, 40])


def test_beginnings_of_beginnings_are_shared_as_a_tree() -> None:
    system, passages = list(range(100)), [list(range(200, 280)), list(range(300, 380))]
    examples = [row([*system, *passages[n % 2], 500 + n, 600, 700], 1) for n in range(8)]
    step = lay_out(examples, micro_batch_tokens=4096, share_prefixes=True)
    assert [sorted(part.inputs for part in parts) for parts in step.passes] == [[system], sorted(passages)]
    assert all(whole(step, one) == examples[one.place].token_ids[:-1] for documents in step.micro_batches for one in documents)
    assert step.executed_tokens == 100 + 2 * 80 + 8 * 2
    assert step.logical_tokens == 8 * 183


def test_each_pair_of_an_answer_and_a_worse_one_shares_its_prompt() -> None:
    prompts = [[1000 * n + place for place in range(90)] for n in range(3)]
    examples = [row([*prompt, 7, answer], 1) for prompt in prompts for answer in (8, 9)]
    step = lay_out(examples, micro_batch_tokens=4096, share_prefixes=True)
    assert sorted(part.inputs for parts in step.passes for part in parts) == sorted(prompts)
    assert len(step.passes) == 1  # no prompt stands on another: they run together


def test_what_does_not_pay_is_not_shared_and_the_step_says_why() -> None:
    for rows, prefix in ((4, 5), (1, 50), (4, 40)):
        step = lay_out(ragged(1, rows, prefix=prefix), micro_batch_tokens=4096, share_prefixes=True)
        assert step.passes == []
        assert step.sharing == "none that would pay"
    assert lay_out(ragged(1, 4, prefix=90), micro_batch_tokens=4096, share_prefixes=False).sharing == "none, as asked"
    shared = lay_out(ragged(1, 4, prefix=90), micro_batch_tokens=4096, share_prefixes=True)
    assert shared.sharing == "1 in 1 levels, which save 270 tokens"


@given(some.lists(some.integers(1, 1000), min_size=1, max_size=30))
def test_groups_hold_all_documents_and_long_ones_stand_alone(lengths: list[int]) -> None:
    groups = length_groups(sorted(lengths))
    assert [length for group in groups for length in group] == sorted(lengths)
    assert all(len(group) == 1 or max(group) <= ALONE_TOKENS for group in groups)
