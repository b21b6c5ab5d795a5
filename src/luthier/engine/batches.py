"""Lay the examples of one update out: what they share is found, tails are left out, the rest is cut into micro-batches.

Plain lists and numbers; no tensors.
"""

from dataclasses import dataclass

from luthier.plan.shape import common_prefix
from luthier.records import TokenizedExample

# Below this a shared prefix saves less than its own pass through the model costs.
LEAST_SHARED_TOKENS = 8
LEAST_SAVING = 1.1


@dataclass(frozen=True, slots=True)
class Document:
    """The part of an example that runs: `inputs` after the shared prefix, up to the token before the last trained one.

    `targets[i]` is the token that input `rows[i]` has to predict; rows count from the document's own start.
    """

    inputs: list[int]
    rows: list[int]
    targets: list[int]


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer update, laid out. Executed tokens = prefix + all inputs; logical tokens = what the examples hold."""

    prefix: list[int]
    micro_batches: list[list[Document]]
    logical_tokens: int
    executed_tokens: int
    trained_tokens: int


def first_trained(example: TokenizedExample) -> int:
    return example.trained.index(True)


def last_trained(example: TokenizedExample) -> int:
    return len(example.trained) - 1 - example.trained[::-1].index(True)


def shared_prefix(examples: list[TokenizedExample]) -> list[int]:
    """The tokens that all examples of an update begin with, or none where sharing does not pay.

    The cut is at least one token before the first trained token of every example, so that no label falls on the seam.
    """
    if len(examples) < 2:
        return []
    length = min(common_prefix([example.token_ids for example in examples]), min(first_trained(example) for example in examples) - 1)
    if length < LEAST_SHARED_TOKENS:
        return []
    executed = sum(last_trained(example) for example in examples)
    saving = executed / (executed - length * (len(examples) - 1))
    return examples[0].token_ids[:length] if saving >= LEAST_SAVING else []


def document(example: TokenizedExample, prefix_tokens: int) -> Document:
    """The part of `example` after the prefix. Tokens from the last trained one on are not run: nothing is predicted after it."""
    end = last_trained(example)
    predicted = [index for index in range(1, end + 1) if example.trained[index]]
    return Document(
        inputs=example.token_ids[prefix_tokens:end],
        rows=[index - 1 - prefix_tokens for index in predicted],
        targets=[example.token_ids[index] for index in predicted],
    )


def lay_out(examples: list[TokenizedExample], *, micro_batch_tokens: int, share_prefixes: bool) -> Step:
    """Lay one update out. Every example must have a trained token after its first one (data sees to it)."""
    prefix = shared_prefix(examples) if share_prefixes else []
    documents = sorted((document(example, len(prefix)) for example in examples), key=lambda one: len(one.inputs))
    micro_batches: list[list[Document]] = []
    room = 0
    for one in documents:
        if not micro_batches or len(one.inputs) > room:
            micro_batches.append([])
            room = micro_batch_tokens
        micro_batches[-1].append(one)
        room -= len(one.inputs)
    return Step(
        prefix=prefix,
        micro_batches=micro_batches,
        logical_tokens=sum(len(example.token_ids) for example in examples),
        executed_tokens=len(prefix) + sum(len(one.inputs) for one in documents),
        trained_tokens=sum(len(one.targets) for one in documents),
    )
