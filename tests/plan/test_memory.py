from dataclasses import replace

import pytest

from luthier.plan import memory


def test_lora_parameters_are_those_that_peft_counts(smollm2, llama3_8b):
    # PEFT's own count for r=16 on all linear layers of these two models.
    assert memory.lora_parameters(smollm2, 16, "all-linear") == 4_884_480
    assert memory.lora_parameters(llama3_8b, 16, "all-linear") == 41_943_040


def test_lora_on_two_layers_is_smaller(smollm2):
    assert memory.lora_parameters(smollm2, 8, ["q_proj", "v_proj"]) == 30 * 8 * ((576 + 576) + (576 + 192))


@pytest.mark.parametrize("spelling", ["q_proj", ["q_proj"], ["self_attn.q_proj"]])
def test_a_layer_may_be_named_alone_or_with_its_parent(spelling, smollm2):
    assert memory.lora_parameters(smollm2, 8, spelling) == 30 * 8 * (576 + 576)


def test_the_body_is_what_is_left_without_embedding_and_head(smollm2, llama3_8b):
    assert memory.body_parameters(smollm2) == 106_203_456
    assert memory.body_parameters(llama3_8b) == 8_030_261_248 - 2 * 128_256 * 4096


def test_the_parts_of_a_run(smollm2):
    cost = memory.lora_run_bytes(smollm2, 4_884_480, "bf16", micro_batch_tokens=1000, row_tokens=110, prefix_tokens=0)
    assert cost["weights"] == 269_030_016
    assert cost["adapter and optimizer"] == 78_151_680
    assert cost["shared prefix"] == 0
    # A prototype of this run with micro-batches of 1,000 tokens peaked at 2.2 GB.
    assert 2.2e9 < sum(cost.values()) < 2.8e9


def test_twice_the_tokens_need_twice_the_activations_and_nothing_else(smollm2):
    small = memory.lora_run_bytes(smollm2, 1, "bf16", 1000, 110, 90)
    large = memory.lora_run_bytes(smollm2, 1, "bf16", 2000, 110, 90)
    assert large["activations"] == 2 * small["activations"]
    assert {name for name in small if small[name] != large[name]} == {"activations"}


def test_fp32_needs_twice_the_weights_of_bf16(llama3_8b):
    cost = {kind: memory.lora_run_bytes(llama3_8b, 1, kind, 1000, 110, 0) for kind in ("bf16", "fp32")}
    assert cost["fp32"]["weights"] == 2 * cost["bf16"]["weights"]
    assert cost["fp32"]["activations"] > 1.5 * cost["bf16"]["activations"]


def test_every_weight_trained_needs_its_master_gradient_and_moments(smollm2):
    def beyond_weights(precision, optim="adamw"):
        cost = memory.full_run_bytes(smollm2, precision, 1000, 110, 0, optim=optim)
        assert cost["head's gradient"] == (4 + memory.PRECISION_BYTES[precision]) * 49152 * 576
        return cost["gradients and optimizer"] / smollm2.parameters

    assert beyond_weights("bf16") == pytest.approx(16)
    assert beyond_weights("fp32") == pytest.approx(12)
    assert beyond_weights("bf16", "adamw_8bit") == pytest.approx(10, abs=0.05)


def test_the_more_is_computed_again_the_less_is_kept(llama3_8b):
    kept = [memory.activation_bytes_per_token(llama3_8b, 2, mode) for mode in ("off", "selective", "full")]
    assert kept[0] > 2 * kept[1] > 4 * kept[2]


def test_trained_tables_are_counted_once_where_they_are_tied(smollm2, llama3_8b):
    assert memory.table_parameters(smollm2, False, 0) == 0
    assert memory.table_parameters(smollm2, True, 2) == 49152 * 576
    assert memory.table_parameters(smollm2, False, 2) == 2 * 576
    assert memory.table_parameters(llama3_8b, True, 0) == 2 * 128256 * 4096


def test_a_base_in_8_bits_keeps_two_more_bytes_of_each_weight(llama3_8b):
    plain, rounded = (memory.lora_run_bytes(llama3_8b, 1, "bf16", 1000, 110, 0, frozen_base=kind) for kind in ("bf16", "fp8"))
    assert rounded["weights"] == 2 * plain["weights"]
    assert rounded["adapter and optimizer"] == plain["adapter and optimizer"]


@pytest.mark.parametrize(
    ("kind", "double_quant", "bits"), [("nf4", True, 4.127), ("fp4", False, 4.5), ("int8", True, 8.03), ("int8_torchao", True, 8.03)]
)
def test_a_quantized_base_has_small_linear_layers_and_whole_tables(kind, double_quant, bits, llama3_8b):
    found = memory.quantized_bits(kind, double_quant)
    assert found == pytest.approx(bits, abs=1e-3)
    linear = memory.linear_parameters(llama3_8b)
    assert linear == 6_979_321_856  # 32 layers of Llama 3 8B
    largest = llama3_8b.hidden * llama3_8b.intermediate
    expected = linear * found / 8 + 2 * (llama3_8b.parameters - linear + largest)
    assert memory.lora_run_bytes(llama3_8b, 0, "bf16", 100, 50, 0, linear_bits=found)["weights"] == pytest.approx(expected, abs=1)


def test_a_model_like_gpt_2_has_two_matrices_in_its_mlp(smollm2):
    gpt2 = replace(smollm2, hidden=768, intermediate=3072, heads=12, kv_heads=12, layers=12, gated=False)
    assert memory.linear_parameters(gpt2) == 12 * 12 * 768 * 768
    gated, plain = (memory.activation_bytes_per_token(replace(gpt2, gated=gate), 2) for gate in (True, False))
    assert gated - plain == 12 * 2 * 3072 * 2


def test_experts_are_in_memory_and_neither_adapted_nor_quantized(llama3_8b):
    mixture = replace(llama3_8b, experts=8, experts_used=2, parameters=46_702_792_704)
    assert memory.lora_parameters(mixture, 16, "all-linear") == 32 * 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024))
    quantized = memory.quantized_weights_bytes(mixture, "bf16", 4.13)
    assert quantized > 2 * (mixture.parameters - memory.linear_parameters(mixture))
    assert memory.activation_bytes_per_token(mixture, 2) > memory.activation_bytes_per_token(llama3_8b, 2)
    active = memory.active_body_parameters(mixture)
    assert memory.body_parameters(mixture) - active == 32 * 6 * 3 * 4096 * 14336
