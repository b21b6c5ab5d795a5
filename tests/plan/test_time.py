from dataclasses import replace

import pytest

from luthier.plan import memory, time


def test_operations_per_token_of_the_small_model(smollm2):
    # 0.425 GFLOP in the body, 0.029 in the adapter, 0.026 in the attention at 256 tokens; 0.113 in the head for each trained token.
    body = time.lora_flops(smollm2, 4_884_480, executed=1, trained_tokens=0, visible_tokens=256.0)
    assert body == pytest.approx(0.425e9 + 0.029e9 + 0.026e9, rel=0.01)
    assert time.lora_flops(smollm2, 0, executed=0, trained_tokens=1, visible_tokens=256.0) == pytest.approx(0.113e9, rel=0.01)


def test_operations_per_token_of_a_large_model(llama3_8b):
    per_token = time.lora_flops(llama3_8b, 41_943_040, executed=1, trained_tokens=1, visible_tokens=2048.0)
    assert per_token == pytest.approx(31.9e9, rel=0.03)


def test_a_measured_run_is_met_within_a_factor_of_one_and_a_half(smollm2):
    # 322 to 359 tokens/s on two cores at 340 GFLOP/s, rows of 109 tokens of which 54 % are trained.
    flops = time.lora_flops(smollm2, 4_884_480, executed=1000, trained_tokens=540, visible_tokens=109.0)
    assert 340 / 1.5 < 1000 / time.seconds(flops, 340.0, "cpu") < 340 * 1.5


def test_a_shared_prefix_runs_once_an_update():
    assert time.executed_tokens(row_tokens=1000, rows=10, updates=5, prefix_tokens=40) == 1000 - 5 * 40
    assert time.executed_tokens(row_tokens=1000, rows=10, updates=5, prefix_tokens=0) == 1000
    assert time.executed_tokens(row_tokens=1000, rows=10, updates=10, prefix_tokens=40) == 1000


def test_full_training_costs_six_operations_a_weight_and_checkpointing_up_to_two_more(smollm2):
    body = memory.body_parameters(smollm2)
    assert time.full_flops(smollm2, executed=1, trained_tokens=0, visible_tokens=0.0) == 6 * body
    extra = [time.recomputed_flops(smollm2, mode, 1, 0.0) for mode in ("off", "selective", "full")]
    assert extra[0] == 0
    assert 0.4 * body < extra[1] < extra[2] == 2 * body


def test_only_the_experts_that_see_a_token_cost_time(llama3_8b):
    one_expert = replace(llama3_8b, experts=1, experts_used=1)
    eight = replace(one_expert, experts=8, experts_used=2, parameters=llama3_8b.parameters + 7 * 32 * 3 * 4096 * 14336)
    per_token = [time.lora_flops(facts, 0, 1, 0, 0.0) for facts in (llama3_8b, one_expert, eight)]
    assert per_token[0] == per_token[1]
    assert per_token[2] - per_token[1] == 4 * 32 * 3 * 4096 * 14336
    assert time.recomputed_flops(eight, "selective", 1, 0.0) == 2 * time.recomputed_flops(one_expert, "selective", 1, 0.0)
