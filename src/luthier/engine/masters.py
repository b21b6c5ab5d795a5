"""fp32 masters of trained weights that the model keeps in another number format (Micikevicius 2018, arXiv:1710.03740, section 3.1).

An update of 1e-5 is lost in a bf16 weight, and so is the hundredth addend of a bf16 gradient: both are kept in fp32.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from luthier.engine import lanes
from luthier.engine.shards import here, part_of


class Masters:
    """What the optimizer changes: `weights[name]` is the parameter itself where it is fp32, else its fp32 twin.

    As soon as a backward pass has a parameter's gradient it is added to the twin's and dropped, so that no second one is kept.
    """

    def __init__(self, model: nn.Module) -> None:
        self.weights: dict[str, nn.Parameter] = {}
        self._twins: dict[nn.Parameter, nn.Parameter] = {}  # parameter of the model -> its master
        self._trained: dict[nn.Parameter, nn.Parameter] = {}  # every trained parameter of the model -> its master, or itself
        self._buffers: dict[nn.Parameter, Tensor] = {}  # gradients of earlier updates: fresh pages cost more than the addition
        self._shards: dict[nn.Parameter, nn.Parameter] = {}  # parameter that ranks share (a DTensor) -> the part that is here, its master
        self._of_lanes: dict[int, dict[nn.Parameter, Tensor]] = {}  # what each lane has gathered, by master
        self._spare: dict[int, dict[nn.Parameter, Tensor]] = {}  # the same of earlier updates
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.weights[name] = self._trained[parameter] = self._master(parameter)

    def _master(self, parameter: nn.Parameter) -> nn.Parameter:
        if isinstance(parameter, DTensor):
            self._shards[parameter] = nn.Parameter(here(parameter))  # the same memory, and fp32 (sharding.py sees to it)
            return self._shards[parameter]
        if parameter.dtype == torch.float32:
            return parameter
        master = nn.Parameter(parameter.detach().float())
        self._twins[parameter] = master
        parameter.register_post_accumulate_grad_hook(partial(self._take, master))
        return master

    def _take(self, master: nn.Parameter, parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is not None:
            self._add(master, gradient)

    def backward_in_lane(self, loss: Tensor, leaves: list[Tensor]) -> None:
        """loss.backward() of a lane, which gathers by itself: two that added to one place would do so in any order. `leaves` are the lane's own."""
        gradients = torch.autograd.grad(loss, [*self._trained, *leaves], allow_unused=True)
        gathered = self._of_lanes.setdefault(lanes.here(), {})
        for master, gradient in zip(self._trained.values(), gradients, strict=False):
            if gradient is not None and master in gathered:
                gathered[master] += gradient
            elif gradient is not None:
                gathered[master] = self._spare_of(lanes.here(), master).copy_(gradient)
        for leaf, gradient in zip(leaves, gradients[len(self._trained) :], strict=True):
            if gradient is not None:
                leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient

    def _add(self, master: nn.Parameter, gradient: Tensor) -> None:
        if master.grad is not None:
            master.grad += gradient
        elif master in self._buffers:
            master.grad = self._buffers[master].copy_(gradient)
        else:
            master.grad = gradient.to(torch.float32, copy=True)

    def gradient_of(self, parameter: nn.Parameter) -> Tensor:
        """The fp32 gradient of a parameter of the model, to be added to; zeros where there is none yet."""
        master = self._twins.get(parameter, parameter)
        if lane := lanes.here():
            gathered = self._of_lanes.setdefault(lane, {})
            if master not in gathered:
                gathered[master] = self._spare_of(lane, master).zero_()
            return gathered[master]
        if master.grad is None:
            master.grad = self._buffers[master].zero_() if master in self._buffers else torch.zeros_like(master)
        return master.grad

    def _spare_of(self, lane: int, master: nn.Parameter) -> Tensor:
        spare = self._spare.setdefault(lane, {})
        if master not in spare:
            spare[master] = torch.empty_like(master)
        return spare[master]

    @torch.no_grad()
    def add_lanes(self) -> None:
        """Add what the lanes have gathered to the gradients, in the order of the lanes."""
        for _, gathered in sorted(self._of_lanes.items()):
            for master, gradient in gathered.items():
                self._add(master, gradient)
        self._of_lanes = {}

    @property
    def shards(self) -> dict[str, nn.Parameter]:
        """The parameters that ranks share, by name."""
        by_master = {master: parameter for parameter, master in self._shards.items()}
        return {name: by_master[weight] for name, weight in self.weights.items() if weight in by_master}

    @torch.no_grad()
    def take_shards(self) -> None:
        """Take over the gradients of the parts that are here, which torch has added up over the ranks already."""
        shard: Any
        for shard, master in self._shards.items():
            gradient: Any = shard.grad
            shard.grad = None
            if gradient is not None:
                master.grad = here(gradient.redistribute(placements=shard.placements))

    @torch.no_grad()
    def copy_back(self) -> None:
        """Round the masters into the model's own format."""
        for parameter, master in self._twins.items():
            parameter.copy_(master)

    def forget_gradients(self) -> None:
        self._of_lanes = {}
        for master in self._twins.values():
            if master.grad is not None:
                self._buffers[master] = master.grad
        for weight in self.weights.values():
            weight.grad = None

    @torch.no_grad()
    def load(self, weights: dict[str, Any]) -> None:
        """Put stored values (by name, all of them) into the masters and the model."""
        shards = self.shards
        for name, master in self.weights.items():
            master.copy_(part_of(shards[name], weights[name]) if name in shards else weights[name])
        self.copy_back()
