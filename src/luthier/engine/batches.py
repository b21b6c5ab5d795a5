"""Lay the examples of one update out: what they share is found, tails are left out, the rest is cut into micro-batches.

Plain lists and numbers; no tensors.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from luthier.plan.shape import common_prefix
from luthier.records import TokenizedExample

# A pass through the model by itself costs about as much as so many tokens more in another pass (2 cores; docs/experiments.md).
PASS_TOKENS = 200
# Fewer tokens than this do not repay a lane of their own.
LANE_TOKENS = 128
# A part of a prefix below this, or that saves less, is not worth a place of its own.
LEAST_SHARED_TOKENS = 8
LEAST_SAVED_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Document:
    """Tokens that run in one piece, after the prefix parts `path` (by their places).

    `targets[i]` is the token that input `rows[i]` has to predict; rows count from the document's own start.
    `place` is its example's in the update; of a part of a prefix, which has no targets, its own among the parts.
    `token_ids` is the whole row it is a part of.
    """

    inputs: list[int]
    place: int
    first_position: int = 0
    path: tuple[int, ...] = ()
    rows: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer update, laid out. Executed tokens = prefixes + all inputs; logical tokens = what the examples hold.

    `passes` are the parts of shared prefixes that run together: a part comes after those on its path.
    `sharing` says in words what was shared, or why nothing was. Of the micro-batches so many as there are `lanes` may run at once.
    """

    passes: list[list[Document]]
    micro_batches: list[list[Document]]
    logical_tokens: int
    executed_tokens: int
    trained_tokens: int
    sharing: str = ""
    lanes: int = 1

    @property
    def tokens_at_once(self) -> int:
        """The most tokens that go through the model at the same time."""
        sizes = sorted(sum(len(one.inputs) for one in pack) for pack in self.micro_batches)
        return max(sum(sizes[-self.lanes :]), *(sum(len(one.inputs) for one in pack) for pack in self.passes), 0)


def first_trained(example: TokenizedExample) -> int:
    return example.trained.index(True)


def last_trained(example: TokenizedExample) -> int:
    return len(example.trained) - 1 - example.trained[::-1].index(True)


class _Trie:
    """The parts that examples of an update begin with, as a tree: which part stands below which, and which path each example has."""

    def __init__(self, examples: list[TokenizedExample], depth: int) -> None:
        self.depth = depth
        self.token_ids = [example.token_ids for example in examples]
        # The cut is at least one token before the first trained token, so that no label falls on the seam.
        self.shareable = [example.token_ids[: max(0, first_trained(example) - 1)] for example in examples]
        self.parts: list[Document] = []
        self.path: list[tuple[int, ...]] = [()] * len(examples)
        self.saved_tokens = 0
        self._split(sorted(range(len(examples)), key=lambda place: self.shareable[place]), (), 0, 0)

    def _split(self, members: list[int], path: tuple[int, ...], begun: int, seen: int) -> None:
        """Find what `members` (in dictionary order) share after `begun` tokens; they are known to agree on the first `seen`."""
        if len(members) < 2:
            self._settle(members, path)
            return
        common = common_prefix([self.shareable[member] for member in members])
        own = common - begun
        if len(path) < self.depth and own >= LEAST_SHARED_TOKENS and own * (len(members) - 1) >= LEAST_SAVED_TOKENS:
            row = self.token_ids[members[0]]
            self.parts.append(Document(row[begun:common], len(self.parts), begun, path, token_ids=row))
            self.saved_tokens += own * (len(members) - 1)
            path, begun = (*path, len(self.parts) - 1), common
        for token, branch in groupby(members, key=lambda member: self._token(member, common)):
            if token is None:
                self._settle(list(branch), path)
            else:
                self._split(list(branch), path, begun, common)

    def _token(self, member: int, place: int) -> int | None:
        tokens = self.shareable[member]
        return tokens[place] if place < len(tokens) else None

    @property
    def gain(self) -> int:
        return self.saved_tokens - PASS_TOKENS * len(self.levels)

    def _settle(self, members: list[int], path: tuple[int, ...]) -> None:
        for member in members:
            self.path[member] = path

    @property
    def levels(self) -> list[list[Document]]:
        """The parts by depth, those of one parent together, short ones first."""
        parts = sorted(self.parts, key=lambda part: (len(part.path), part.path, len(part.inputs)))
        return [list(level) for _, level in groupby(parts, key=lambda part: len(part.path))]


def document(example: TokenizedExample, place: int, path: tuple[int, ...], prefix_tokens: int) -> Document:
    """The part of `example` after its prefix. Tokens from the last trained one on are not run: nothing is predicted after it."""
    end = last_trained(example)
    predicted = [index for index in range(1, end + 1) if example.trained[index]]
    return Document(
        inputs=example.token_ids[prefix_tokens:end],
        place=place,
        first_position=prefix_tokens,
        path=path,
        rows=[index - 1 - prefix_tokens for index in predicted],
        targets=[example.token_ids[index] for index in predicted],
        token_ids=example.token_ids,
    )


def lay_out(
    examples: list[TokenizedExample],
    *,
    micro_batch_tokens: int,
    share_prefixes: bool,
    together: Sequence[Sequence[int]] | None = None,
    lanes: int = 1,
) -> Step:
    """Lay one update out. Every example must have a trained token after its first one (data sees to it).

    `together` are groups of examples, by their places, each of which goes through the model in one micro-batch; none given: one example each.
    """
    trie = _best(examples) if share_prefixes else _Trie(examples, depth=0)
    parts, paths = trie.parts, trie.path
    documents = [
        document(example, place, paths[place], sum(len(parts[part].inputs) for part in paths[place])) for place, example in enumerate(examples)
    ]
    units = [[documents[place] for place in group] for group in together or ([place] for place in range(len(examples)))]
    units.sort(key=lambda unit: (unit[0].path, sum(len(one.inputs) for one in unit)))
    side_by_side = _for_lanes(units, micro_batch_tokens, lanes)
    return Step(
        passes=[pack for level in trie.levels for pack in packs(level, micro_batch_tokens)],
        micro_batches=[_sorted(pack) for pack in side_by_side or packs_of_units(units, micro_batch_tokens)],
        logical_tokens=sum(len(example.token_ids) for example in examples),
        executed_tokens=sum(len(one.inputs) for one in [*parts, *documents]),
        trained_tokens=sum(len(one.targets) for one in documents),
        sharing=_sharing(share_prefixes, trie),
        lanes=lanes if side_by_side else 1,
    )


def _for_lanes(units: list[list[Document]], micro_batch_tokens: int, lanes: int) -> list[list[Document]] | None:
    """Micro-batches of about one size, as many for each lane, which share the budget; None where that is too small, or not worth it."""
    sizes = [sum(len(one.inputs) for one in unit) for unit in units]
    total, share = sum(sizes), micro_batch_tokens // lanes
    if lanes == 1 or total < LANE_TOKENS * lanes or len(units) < lanes or max(sizes) > share:
        return None
    for count in range(lanes * -(-total // micro_batch_tokens), len(units) + lanes, lanes):
        packs: list[list[Document]] = [[] for _ in range(count)]
        done = 0
        for unit, size in zip(units, sizes, strict=True):
            packs[(2 * done + size) * count // (2 * total)].extend(unit)
            done += size
        if max(sum(len(one.inputs) for one in pack) for pack in packs) <= share:
            return [pack for pack in packs if pack]
    return None


def packs(documents: Sequence[Document], tokens: int) -> Iterator[list[Document]]:
    """Documents in runs of at most so many tokens; a longer document stands alone."""
    return packs_of_units([[one] for one in documents], tokens)


def packs_of_units(units: Sequence[Sequence[Document]], tokens: int) -> Iterator[list[Document]]:
    """The documents of whole units in runs of at most so many tokens; a longer unit stands alone."""
    pack: list[Document] = []
    room = tokens
    for unit in units:
        size = sum(len(one.inputs) for one in unit)
        if pack and size > room:
            yield pack
            pack, room = [], tokens
        pack.extend(unit)
        room -= size
    if pack:
        yield pack


def _sorted(documents: list[Document]) -> list[Document]:
    """Documents of one path stand together, short ones first: they go through one product."""
    return sorted(documents, key=lambda one: (one.path, len(one.inputs)))


def _best(examples: list[TokenizedExample]) -> _Trie:
    """The tree of the depth that saves most, with what its passes cost; that of depth 0 shares nothing."""
    best = deeper = _Trie(examples, depth=0)
    while len(deeper.levels) == deeper.depth:
        deeper = _Trie(examples, deeper.depth + 1)
        best = max(best, deeper, key=lambda trie: trie.gain)
    return best


def beginnings(examples: list[TokenizedExample]) -> list[tuple[int, int]]:
    """For each example which beginning it shares with others, as a number, and how many tokens that has; -1 and 0: none that would pay."""
    trie = _best(examples)
    return [(path[0], len(trie.parts[path[0]].inputs)) if path else (-1, 0) for path in trie.path]


def _sharing(asked: bool, trie: _Trie) -> str:
    if not asked:
        return "none, as asked"
    if not trie.parts:
        return "none that would pay"
    return f"{len(trie.parts)} in {len(trie.levels)} levels, which save {trie.saved_tokens:,} tokens"
