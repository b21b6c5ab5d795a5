"""Train a whole model but for some of its layers. What is frozen has no gradient, no master and no moments; nothing runs back below it."""

from typing import Any

from torch import nn

from luthier.config.adapters import FreezeSettings
from luthier.errors import ConfigError
from luthier.models.blocks import known_blocks
from luthier.models.facts import check_layers


def train_all_but(model: Any, settings: FreezeSettings) -> Any:
    """The model with every weight trained but those of the frozen layers and, where `settings.embeddings`, its tables of embeddings.

    A head that is the embedding itself is frozen with it. Raises ConfigError for a layer that is not there, and where no matrix is left.
    """
    model.requires_grad_(True)
    frozen = settings.numbers()
    if frozen:
        blocks = known_blocks(model, "freeze.layers")
        check_layers(frozen, len(blocks), "freeze.layers")
        for number in frozen:
            blocks[number].requires_grad_(False)
    if settings.embeddings:
        for module in model.get_decoder().modules():
            if isinstance(module, nn.Embedding):
                module.requires_grad_(False)
    if not any(parameter.requires_grad and parameter.dim() > 1 for parameter in model.parameters()):
        raise ConfigError("nothing but norms would be trained: every layer is frozen", where="freeze", next_step="leave some layers out")
    return model
