"""fp32 masters of trained weights that the model keeps in another number format (Micikevicius 2018, arXiv:1710.03740, section 3.1).

An update of 1e-5 is lost in a bf16 weight, and so is the hundredth addend of a bf16 gradient: both are kept in fp32.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class Masters:
    """What the optimizer changes: `weights[name]` is the parameter itself where it is fp32, else its fp32 twin.

    As soon as a backward pass has a parameter's gradient it is added to the twin's and dropped, so that no second one is kept.
    """

    def __init__(self, model: nn.Module) -> None:
        self.weights: dict[str, nn.Parameter] = {}
        self._twins: dict[nn.Parameter, nn.Parameter] = {}  # parameter of the model -> its master
        self._buffers: dict[nn.Parameter, Tensor] = {}  # gradients of earlier updates: fresh pages cost more than the addition
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.weights[name] = self._master(parameter)

    def _master(self, parameter: nn.Parameter) -> nn.Parameter:
        if parameter.dtype == torch.float32:
            return parameter
        master = nn.Parameter(parameter.detach().float())
        self._twins[parameter] = master
        parameter.register_post_accumulate_grad_hook(partial(self._take, master))
        return master

    def _take(self, master: nn.Parameter, parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is None:
            return
        if master.grad is not None:
            master.grad += gradient
        elif master in self._buffers:
            master.grad = self._buffers[master].copy_(gradient)
        else:
            master.grad = gradient.float()

    def gradient_of(self, parameter: nn.Parameter) -> Tensor:
        """The fp32 gradient of a parameter of the model, to be added to; zeros where there is none yet."""
        master = self._twins.get(parameter, parameter)
        if master.grad is None:
            master.grad = self._buffers[master].zero_() if master in self._buffers else torch.zeros_like(master)
        return master.grad

    @torch.no_grad()
    def copy_back(self) -> None:
        """Round the masters into the model's own format."""
        for parameter, master in self._twins.items():
            parameter.copy_(master)

    def forget_gradients(self) -> None:
        for master in self._twins.values():
            if master.grad is not None:
                self._buffers[master] = master.grad
        for weight in self.weights.values():
            weight.grad = None

    @torch.no_grad()
    def load(self, weights: dict[str, Any]) -> None:
        """Put stored values (by name, all of them) into the masters and the model."""
        for name, master in self.weights.items():
            master.copy_(weights[name])
        self.copy_back()
