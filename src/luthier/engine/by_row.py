"""Many adapters over one base in one forward: each token goes through the adapter of its own request.

The base is loaded once, without PEFT. The narrow matrices of all adapters in a forward stand side by side: one product with all of them,
then every token keeps the columns of its own (times its scale) and drops the others, then one product back. So a forward costs two products
a layer, whatever the number of adapters (Chen 2023, arXiv:2310.18547, has the products of each apart).

Letters: T tokens of one forward, I inputs, O outputs, R columns of all adapters together.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from luthier.engine.packed import KeysValues

# Matrices that stand side by side are kept for so many sets of adapters.
KEPT_SETS = 4


@dataclass(frozen=True, slots=True)
class LowRank:
    """What a LoRA adapter adds to one linear layer: scale * x down^T up^T, with `down` (R, I) and `up` (O, R)."""

    down: Tensor
    up: Tensor
    scale: float


@dataclass(frozen=True, slots=True)
class Behind:
    """What a bottleneck adapter adds to a sub-layer's output: a function of that output, or of the sub-layer's input."""

    added: Callable[[Tensor], Tensor]
    reads_input: bool


@dataclass(frozen=True, slots=True)
class RowAdapter:
    """An adapter that a request can name. `key` is the hash of what it holds: two of one key answer alike.

    `low_rank` and `behind` by the names of the base's modules; `prefix[layer]` are keys and values (P, K, D) that stand before its rows.
    """

    key: str
    low_rank: dict[str, LowRank] = field(default_factory=dict)
    behind: dict[str, Behind] = field(default_factory=dict)
    prefix: dict[int, KeysValues] = field(default_factory=dict)

    @property
    def virtual_tokens(self) -> int:
        return len(self.prefix[0][0]) if self.prefix else 0


@dataclass(frozen=True, slots=True)
class _Side:
    """The matrices of a layer for a set of adapters, and each adapter's key, first and last column, and scale."""

    downs_RI: Tensor
    ups_RO: Tensor
    division: tuple[tuple[str, int, int, float], ...]


class ByRow:
    """Gives the layers of a base the adapters of the tokens that come through them. `use` says whose they are."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._changed: dict[str, Any] = {}
        self._of_tokens: list[RowAdapter | None] = []
        self._present: dict[str, RowAdapter] = {}
        self._set: tuple[str, ...] = ()
        self._sides: OrderedDict[tuple[str, ...], dict[str, _Side | None]] = OrderedDict()
        self._scales_of: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}

    def use(self, of_tokens: Sequence[RowAdapter | None]) -> None:
        """The adapter of each token of the next forward; None: the base alone."""
        self._of_tokens = list(of_tokens)
        self._present = {one.key: one for one in of_tokens if one is not None and (one.low_rank or one.behind)}
        self._scales_of.clear()
        for one in self._present.values():
            self._install(one.low_rank, self._low_rank_forward)
            self._install(one.behind, self._behind_forward)
        self._set = tuple(sorted(self._present))
        self._sides.setdefault(self._set, {})
        self._sides.move_to_end(self._set)
        if len(self._sides) > KEPT_SETS:
            self._sides.popitem(last=False)

    def rest(self) -> None:
        """Between two forwards the base is the base alone: a prompt's virtual tokens are run through it when its adapter is read."""
        self._of_tokens, self._present, self._set = [], {}, ()
        self._scales_of.clear()

    def forget(self, key: str) -> None:
        """Drop what is kept of an adapter that is not used any more."""
        for kept in [kept for kept in self._sides if key in kept and kept != self._set]:
            del self._sides[kept]

    def give_back(self) -> None:
        """Take the adapters out of the base."""
        for module in self._changed.values():
            del module.forward
        self._changed.clear()
        self._sides.clear()

    def _install(self, layers: dict[str, Any], forward_of: Callable[[str, Any], Any]) -> None:
        for name in layers.keys() - self._changed.keys():
            module: Any = self.model.get_submodule(name)
            module.forward = forward_of(name, module.forward)
            self._changed[name] = module

    def _low_rank_forward(self, name: str, plain: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            y = plain(x)
            side = self._side(name, x.dtype)
            if side is None:
                return y
            narrow_TR = x.reshape(-1, x.shape[-1]) @ side.downs_RI.T
            scale_TR, hidden_TR = self._scales(side, narrow_TR)
            # Not a product with zero alone: what another adapter overflowed to would stay.
            narrow_TR = narrow_TR.mul_(scale_TR).masked_fill_(hidden_TR, 0)
            return y.reshape(-1, y.shape[-1]).addmm(narrow_TR, side.ups_RO).view(y.shape)

        return forward

    def _behind_forward(self, name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            output = plain(*args, **kwargs)
            states, *rest = output if isinstance(output, tuple) else (output,)
            read = args[0] if args else kwargs["hidden_states"]
            states = self._with_behind(name, read, states)
            return (states, *rest) if isinstance(output, tuple) else states

        return forward

    def _with_behind(self, name: str, read: Tensor, states: Tensor) -> Tensor:
        states = states.clone()
        for key, one in self._present.items():
            if behind := one.behind.get(name):
                rows = torch.tensor([row for row, of in enumerate(self._of_tokens) if of is not None and of.key == key], device=states.device)
                states[:, rows] += behind.added((read if behind.reads_input else states)[:, rows])
        return states

    def _side(self, name: str, dtype: torch.dtype) -> _Side | None:
        """The matrices of a layer for the adapters of this forward; None where none of them adds anything to it."""
        if not self._set:
            return None
        sides = self._sides[self._set]
        if name not in sides:
            parts = [(key, self._present[key].low_rank[name]) for key in self._set if name in self._present[key].low_rank]
            sides[name] = _side_by_side(parts, dtype) if parts else None
        return sides[name]

    def _scales(self, side: _Side, like_TR: Tensor) -> tuple[Tensor, Tensor]:
        """Each token's scale in the columns of its own adapter, zero in the others, and where they are zero: (T, R). Layers that are divided
        alike share them."""
        if side.division not in self._scales_of:
            columns = {key: (slice(start, stop), scale) for key, start, stop, scale in side.division}
            scales = torch.zeros_like(like_TR)
            for row, one in enumerate(self._of_tokens):
                if one is not None and one.key in columns:
                    place, scale = columns[one.key]
                    scales[row, place] = scale
            self._scales_of[side.division] = (scales, scales == 0)
        return self._scales_of[side.division]


def _side_by_side(parts: list[tuple[str, LowRank]], dtype: torch.dtype) -> _Side:
    division, start = [], 0
    for key, one in parts:
        division.append((key, start, start + len(one.down), one.scale))
        start += len(one.down)
    downs = torch.cat([one.down.to(dtype) for _, one in parts])
    ups = torch.cat([one.up.to(dtype).T for _, one in parts]).contiguous()
    return _Side(downs, ups, tuple(division))
