"""Settings of the updates that have no effect, or no sense, beside others."""

from typing import Any

import pytest

from luthier.config.load import load_config, settings_to_yaml
from luthier.config.preference import ROWS

REFUSED = {
    # written below training                                     the setting           what is said
    "num_cycles: 2":                                             ("num_cycles",         "num_cycles has no effect with lr_scheduler_type: cosine"),
    "decay_ratio: 0.2":                                          ("decay_ratio",        "no effect with lr_scheduler_type: cosine"),
    "lr_scheduler_type: warmup_stable_decay, decay_ratio: 0.2, decay_steps: 3": ("decay_steps", "both say how long the rate falls"),
    "optim: adafactor, adam_beta1: 0.9":                         ("adam_beta1",         "adam_beta1 has no effect with optim: adafactor"),
    "optim: lion, adam_epsilon: 1e-6":                           ("adam_epsilon",       "adam_epsilon has no effect with optim: lion"),
    "optim: muon":                                               ("optim",              "muon is for whole weight matrices"),
    "optim: schedule_free, lr_scheduler_type: linear":           ("lr_scheduler_type",  "in place of a falling rate"),
    "optim: schedule_free, adam_beta1: 0.0":                     ("adam_beta1",         "divides by adam_beta1"),
    "neftune_noise_alpha: 5, share_prefixes: true":              ("share_prefixes",     "each row has noise of its own"),
    "neftune_noise_alpha: 5, cache_frozen_layers: true":         ("cache_frozen_layers", "give others at every update"),
}  # fmt: skip


@pytest.mark.parametrize(("block", "expected"), REFUSED.items(), ids=REFUSED)
def test_what_cannot_stand_together_is_refused(refuse: Any, block: str, expected: tuple[str, str]) -> None:
    error = refuse(f"training: {{{block}}}\n")
    assert expected[1] in error.problem
    assert error.where == "luthier.yaml:3"
    assert error.next_step


@pytest.mark.parametrize("name", ["neftune_noise_alpha", "label_smoothing_factor"])
def test_noise_and_smoothing_are_for_answers_alone(refuse: Any, name: str) -> None:
    assert f"{name} is for objective: sft" in refuse(f"objective: dpo\ntraining: {{{name}: 0.5}}\n").problem


@pytest.mark.parametrize("loss_on", ["assistant", "last_assistant", "all"])
@pytest.mark.parametrize("objective", ["sft", *ROWS])
def test_what_is_trained_of_a_judged_row_is_no_choice(refuse: Any, load: Any, objective: str, loss_on: str) -> None:
    if objective == "sft":
        assert load("", f"data.loss_on={loss_on}").settings.data.loss_on == loss_on
    else:
        error = refuse(f"objective: {objective}\n", f"data.loss_on={loss_on}")
        assert (error.problem, error.next_step) == (
            f"objective: {objective} trains the answers that are judged, and nothing else",
            "take loss_on out",
        )


@pytest.mark.parametrize(
    "block",
    [
        "lr_scheduler_type: cosine_with_restarts, num_cycles: 3",
        "lr_scheduler_type: warmup_stable_decay, decay_steps: 7",
        "lr_scheduler_type: warmup_stable_decay, decay_ratio: 0.5",
        "neftune_noise_alpha: 5, label_smoothing_factor: 0.1",
        "optim: lion, adam_beta2: 0.99",
        "optim: schedule_free",
        "learning_rates: {lora_B: 2.0}",
    ],
)
def test_what_is_understood_is_written_and_read_again(load: Any, tmp_path: Any, block: str) -> None:
    settings = load(f"training: {{{block}}}\n").settings
    (tmp_path / "config.yaml").write_text(settings_to_yaml(settings), encoding="utf-8")
    assert load_config(tmp_path / "config.yaml").settings == settings


def test_schedule_free_keeps_its_rate(load: Any) -> None:
    assert load("training: {optim: schedule_free}\n").settings.training.lr_scheduler_type == "constant"


@pytest.mark.parametrize("method", ["bottleneck", "prefix", "prompt", "p_tuning"])
def test_a_method_that_changes_every_layer_keeps_none(refuse: Any, load: Any, method: str) -> None:
    error = refuse(f"method: {method}\ntraining: {{cache_frozen_layers: true}}\n")
    assert f"with method: {method} every layer" in error.problem
    assert load("method: lora\ntraining: {cache_frozen_layers: true}\n").settings.training.cache_frozen_layers
