"""Every causal language model that Transformers has, tiny: the fast path gives what the plain model gives, or is not taken."""

import copy
import inspect
from typing import Any

import pytest
import torch
import transformers
from conftest_engine import gradients
from test_architectures import EXACT, FOUR, GPT2, MLA, NO_DROPOUT, ROUTED, SIZES, WINDOW, Plain, differ, rows
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from luthier.engine import Engine

OTHER_NAMES = {"d_model": 32, "n_layers": 2, "n_heads": 4, "ffn_dim": 48, "num_local_experts": 4, "kv_channels": 8, "is_decoder": True, "n_inner": 48}
NO_OTHER_DROPOUT = {"dropout": 0.0, "hidden_dropout": 0.0, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "activation_dropout": 0.0}
ALL = {**MLA, **ROUTED, **FOUR, **GPT2, **NO_DROPOUT, **NO_OTHER_DROPOUT, **OTHER_NAMES, **SIZES}
ALL |= {"num_key_value_heads": 4, "head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "n_group": 1, "topk_group": 1, "sliding_window": WINDOW}
LARGEST = 8_000_000


def build(kind: str) -> Any:
    """The model of this kind with all of the sizes that its config knows; skips the test where these do not fit together."""
    config_class: Any = CONFIG_MAPPING[kind]
    if getattr(config_class, "sub_configs", None):
        pytest.skip("has parts that are not text")
    known = {*getattr(config_class, "__dataclass_fields__", {}), *inspect.signature(config_class.__init__).parameters, *config_class.attribute_map}
    sizes = {name: value for name, value in ALL.items() if name in known}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            model = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind])(config_class(**sizes)).eval()
            with torch.no_grad():
                model(input_ids=torch.tensor([[3, 4, 5]]), use_cache=False)
        except Exception as error:  # what an odd mixture of sizes raises has no common class
            pytest.skip(f"cannot be made: {error}")
        if sum(parameter.numel() for parameter in model.parameters()) > LARGEST:
            pytest.skip("not tiny")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.05)
    return model.requires_grad_(True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
def test_it_gives_what_the_plain_model_gives_or_is_not_taken(kind: str):
    model = build(kind)
    plain = copy.deepcopy(model)
    engine = Engine(model, None)
    if engine.plain_reason:
        assert "trial" not in engine.plain_reason
        return
    for prefix in (0, 24):
        loss, expected = Plain(plain).update(rows(prefix))
        assert engine.forward_backward(rows(prefix)).loss == pytest.approx(loss, rel=EXACT)
        assert differ(gradients(engine), expected) < 2 * EXACT
