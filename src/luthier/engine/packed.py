"""How documents stand in one row while a model is trained: each sees itself and the prefix it hangs on, and nothing else.

Letters: T packed tokens, H heads, K key/value heads, D head width, P prefix tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from torch import Tensor

from luthier.engine import determinism, probe, sequence, varlen
from luthier.engine.blocks import Group, Rule, attend
from luthier.engine.ranks import Team

# Documents of one batched product may differ in length by this factor; more would be padding by another name.
LENGTH_SPREAD = 0.7
# From so many tokens on a document fills products by itself.
ALONE_TOKENS = 512

KeysValues = tuple[Tensor, Tensor]
# Keys and values (P, K, D) of each part of a prefix, by layer.
Pool = dict[int, dict[int, KeysValues]]


@dataclass(slots=True)
class Bottom:
    """Stands for the frozen layers at the bottom in one pass (frozen.py): `states`, (1, T, D), are what they give.

    With `alone` on they are run, their states are left here, and nothing above them runs.
    """

    states: Tensor | None = None
    alone: bool = False


@dataclass(slots=True)
class Packed:
    """The documents of one micro-batch, one after the other; `paths[i]` are the prefix parts that document i sees before itself.

    `pool[part][layer]` are those parts' keys and values. With `record` on, the documents' own are left in `recorded[layer]`, (T, K, D).
    `kernel` is an attention for variable lengths; without one, the device's own is used where it has one.
    `before` virtual tokens stand before every row, which shift all positions.
    `rows[i]` are all token ids of the row that document i is a part of, and where in it the document begins.
    With a `team` only this rank's run of the tokens is here (sequence.py).
    """

    lengths: list[int]
    paths: Sequence[tuple[int, ...]] = ()
    pool: Pool = field(default_factory=dict)
    record: bool = False
    recorded: dict[int, KeysValues] = field(default_factory=dict)
    before: int = 0
    rows: Sequence[tuple[list[int], int]] = ()
    bottom: Bottom | None = None
    kernel: varlen.Product | None = None
    team: Team | None = None
    groups: list[Group] = field(init=False)
    parts: list[int] = field(init=False)
    _places: varlen.Places | None = None

    def __post_init__(self) -> None:
        paths = self.paths or [()] * len(self.lengths)
        self.parts = sorted({part for path in paths for part in path})
        place = {part: index for index, part in enumerate(self.parts)}
        self.groups, start = [], 0
        for path, documents in groupby(zip(paths, self.lengths, strict=True), key=lambda document: document[0]):
            for lengths in length_groups([length for _, length in documents]):
                self.groups.append(Group(start, tuple(lengths), tuple(place[part] for part in path)))
                start += sum(lengths)

    def attend(self, layer: int, q_HTD: Tensor, k_KTD: Tensor, v_KTD: Tensor, rule: Rule) -> Tensor:
        """Attention of all documents: (T, H, D)."""
        q, k, v = (tensor.transpose(0, 1) for tensor in (q_HTD, k_KTD, v_KTD))
        if self.team is None:
            return self._attend(layer, q, k, v, rule)
        q, k, v = sequence.to_heads(self.team, q, k, v)
        return sequence.to_tokens(self.team, self._attend(layer, q, k, v, rule))

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
        if self.record:
            self.recorded[layer] = (k, v)
        leaves = [self.pool[part][layer] for part in self.parts]
        # The kernels' backward passes add with atomics, in any order.
        measured = varlen.supports(q, v, rule) and not determinism.asked_for()
        kernel = self.kernel or (probe.attention_kernel(q.device) if measured else None)
        if kernel is None:
            return attend(q, k, v, self.groups, rule, leaves)
        self._places = self._places or varlen.places(self.groups, [len(keys) for keys, _ in leaves], q.device)
        return varlen.attend(kernel, self._places, q, k, v, rule, leaves)


def length_groups(lengths: Sequence[int]) -> list[list[int]]:
    """Cut sorted lengths into runs that go through one batched product; a long document stands alone."""
    groups: list[list[int]] = []
    for length in lengths:
        if groups and length <= ALONE_TOKENS and LENGTH_SPREAD * length <= groups[-1][0] <= length:
            groups[-1].append(length)
        else:
            groups.append([length])
    return groups
