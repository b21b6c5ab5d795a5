"""Bottleneck adapters: small layers behind the attention and the MLP of each block.

Houlsby 2019 (arXiv:1902.00751) puts one behind each, Pfeiffer 2021 (arXiv:2005.00247) one behind the MLP, He 2022 (arXiv:2110.04366) one
beside the MLP, which reads what the MLP reads. No kept library has them for this Transformers, so they are ours: y + scaling * up(f(down(x))).
`up` starts at zero, so the model begins as its base to the bit. Weights are fp32 and used in the input's number format.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from luthier.config.adapters import BottleneckSettings
from luthier.models.blocks import known_blocks, sublayers
from luthier.models.facts import bottleneck_width

TYPE = "BOTTLENECK"
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    # non_linearity   function
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}
# kind          (behind the attention, reads the input of its sub-layer)
KINDS: dict[str, tuple[bool, bool]] = {
    "houlsby":  (True, False),
    "pfeiffer": (False, False),
    "parallel": (False, True),
}  # fmt: skip


class Bottleneck(nn.Module):
    """One adapter: `width` numbers in and out, fewer between them."""

    def __init__(self, width: int, settings: BottleneckSettings, device: Any = None) -> None:
        super().__init__()
        narrow = bottleneck_width(width, settings.reduction_factor)
        self.down = nn.Linear(width, narrow, device=device, dtype=torch.float32)
        self.up = nn.Linear(narrow, width, device=device, dtype=torch.float32)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.activation, self.scaling = ACTIVATIONS[settings.non_linearity], settings.scaling
        self.on = True

    def forward(self, x: Tensor) -> Tensor:
        """What is added to the sub-layer's output, in the format of `x`."""
        narrow = self.activation(_linear(x, self.down))
        return _linear(narrow, self.up) * self.scaling


def _linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return functional.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


class BottleneckModel(nn.Module):
    """A causal language model with bottleneck adapters in its blocks; only they are trained. Used as PEFT's own models are."""

    def __init__(self, base_model: Any, settings: BottleneckSettings) -> None:
        super().__init__()
        self.base_model, self.settings = base_model.requires_grad_(False), settings
        self.adapters: dict[str, Bottleneck] = {}  # by their names in the base model; they are children of its blocks
        self._hooks: list[Any] = []
        width = base_model.config.get_text_config().hidden_size
        behind_attention, reads_input = KINDS[settings.kind]
        names = {id(module): name for name, module in base_model.named_modules()}
        found = [(block, sublayers(block, names[id(block)])) for block in known_blocks(base_model, "method: bottleneck")]
        for block, (attention, mlp) in found:
            for part in [attention, mlp] if behind_attention else [mlp]:
                adapter = Bottleneck(width, settings, next(block.parameters()).device)
                block.add_module(f"bottleneck_{part}", adapter)
                self.adapters[f"{names[id(block)]}.bottleneck_{part}"] = adapter
                hook = _adding_to_input(adapter) if reads_input else _adding(adapter)
                self._hooks.append(block.get_submodule(part).register_forward_hook(hook, with_kwargs=True))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the base model's forward gives, with the adapters."""
        return self.base_model(*args, **kwargs)

    def get_base_model(self) -> Any:
        """The causal language model itself, with the adapters in its blocks."""
        return self.base_model

    def __getattr__(self, name: str) -> Any:
        """What the base model has (config, name_or_path ...), as PEFT's models have it."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":  # not there yet
                raise
            return getattr(self.base_model, name)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The base model as it was, meanwhile."""
        for adapter in self.adapters.values():
            adapter.on = False
        try:
            yield
        finally:
            for adapter in self.adapters.values():
                adapter.on = True

    def unload(self) -> Any:
        """Take the adapters out again; gives the base model."""
        for hook in self._hooks:
            hook.remove()
        for name in self.adapters:
            block, _, own = name.rpartition(".")
            delattr(self.base_model.get_submodule(block), own)
        self.adapters = {}
        return self.base_model

    def adapter_tensors(self) -> dict[str, Tensor]:
        """Every trained tensor by its name in the base model."""
        return {f"{name}.{own}": tensor for name, adapter in self.adapters.items() for own, tensor in adapter.state_dict().items()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Put stored tensors into the adapters: all of them, by the names of `adapter_tensors`."""
        with torch.no_grad():
            for name, tensor in self.adapter_tensors().items():
                tensor.copy_(tensors[name])

    def config_to_save(self) -> dict[str, Any]:
        """What adapter_config.json holds, but the base's name."""
        return {"peft_type": TYPE, "task_type": "CAUSAL_LM", **self.settings.model_dump()}


def add(model: Any, settings: BottleneckSettings, *, seed: int = 0) -> BottleneckModel:
    """The model with fresh adapters; only they are trained. The same seed gives the same adapters.

    Raises ModelError for a model whose blocks have no attention and MLP of their own.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BottleneckModel(model, settings)


def _adding(adapter: Bottleneck) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return _plus(output, adapter) if adapter.on else None

    return hook


def _adding_to_input(adapter: Bottleneck) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        return _plus(output, adapter, x) if adapter.on else None

    return hook


def _plus(output: Any, adapter: Bottleneck, x: Tensor | None = None) -> Any:
    """The sub-layer's output with the adapter's added; some sub-layers give more than their states, which stays as it is."""
    states, *rest = output if isinstance(output, tuple) else (output,)
    states = states + adapter(states if x is None else x)
    return (states, *rest) if isinstance(output, tuple) else states
