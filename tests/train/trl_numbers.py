"""What TRL makes of a few fixed rows on a fixed tiny model: the numbers that test_objectives.py holds.

TRL is no dependency. In an environment of its own (Python 3.11):

    pip install trl==1.16.0 torch==2.13.0 transformers==5.23.0
    python tests/train/trl_numbers.py

The weights and the rows are formulas, so that both sides make the same ones. ORPO's own loss of the better answer counts the prompt too; here
a prompt is one token, which nothing predicts, so that it makes no difference.
"""

import json
import math
import sys
import tempfile
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

WORDS, PAIRS = 50, 4
# A prompt, a better and a worse answer; a labeled row has the first or the second of them.
ROWS = [
    ([3 + pair], [7 + (5 * pair + 3 * place) % 40 for place in range(3 + pair)], [9 + (7 * pair + 11 * place) % 40 for place in range(6 - pair)])
    for pair in range(PAIRS)
]
LABELS = [True, False, True, True]
CASES: dict[str, dict[str, Any]] = {
    "dpo": {"beta": 0.3},
    "dpo ipo": {"beta": 0.3, "loss_type": "ipo"},
    "dpo hinge": {"beta": 0.3, "loss_type": "hinge"},
    "dpo with its answers": {"beta": 0.3, "sft_weight": 0.5},
    "orpo": {"orpo_weight": 0.4},
    "simpo": {"beta": 2.0, "simpo_gamma": 0.7},
    "simpo smoothed": {"beta": 2.0, "simpo_gamma": 0.7, "label_smoothing": 0.1},
    "simpo with its answers": {"beta": 2.0, "simpo_gamma": 0.7, "sft_weight": 0.5},
    "kto": {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.5},
}


def model_of(phase: float) -> Any:
    """A two-layer Llama in fp32 whose weights are sines; other phases are other models."""
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for number, (name, weight) in enumerate(sorted(model.named_parameters())):
            wave = torch.sin(torch.arange(weight.numel(), dtype=torch.float64) * (1.7 + 0.1 * number) + phase).reshape(weight.shape)
            weight.copy_(1 + 0.1 * wave if "norm" in name else 0.3 * wave)
    return model


def seen_of(model: Any, loss: float) -> dict[str, float]:
    """The loss, and the gradient of all weights: its norm, and its part along a fixed direction."""
    squares = along = 0.0
    for number, (_, weight) in enumerate(sorted(model.named_parameters())):
        gradient = weight.grad.double().reshape(-1)
        squares += float(gradient.square().sum())
        along += float(gradient @ torch.sin(torch.arange(len(gradient), dtype=torch.float64) * 0.9 + number))
    return {"loss": loss, "norm": math.sqrt(squares), "along": along}


def _padded(rows: list[list[int]], fill: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])


def _batch(rows: list[tuple[list[int], list[int]]], prefix: str = "") -> dict[str, torch.Tensor]:
    return {
        f"{prefix}input_ids": _padded([prompt + answer for prompt, answer in rows], 0),
        f"{prefix}attention_mask": _padded([[1] * len(prompt + answer) for prompt, answer in rows], 0),
        f"{prefix}completion_mask": _padded([[0] * len(prompt) + [1] * len(answer) for prompt, answer in rows], 0),
    }


def _of_trl(objective: str, settings: dict[str, Any], folder: str) -> dict[str, float]:
    """One of TRL's trainers, called with the batch as it would make it."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    words = Tokenizer(models.WordLevel({f"w{word}": word for word in range(WORDS)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1", pad_token="w0", bos_token="w2", unk_token="w0")
    common: dict[str, Any] = {"output_dir": folder, "report_to": [], "use_cpu": True, "bf16": False, "gradient_checkpointing": False}
    given: dict[str, Any] = {"processing_class": tokenizer, "model": model_of(0.0)}
    pairs = Dataset.from_list([{"prompt": "w3 ", "chosen": "w4 w5", "rejected": "w6"}] * PAIRS)
    better = [(prompt, chosen) for prompt, chosen, _ in ROWS]
    worse = [(prompt, rejected) for prompt, _, rejected in ROWS]
    if objective == "dpo":
        types, weights = [settings.get("loss_type", "sigmoid")], [1.0]
        if "sft_weight" in settings:
            types, weights = [*types, "sft"], [*weights, settings["sft_weight"]]
        config = DPOConfig(**common, beta=settings["beta"], loss_type=types, loss_weights=weights)
        trainer = DPOTrainer(**given, ref_model=model_of(1.5), args=config, train_dataset=pairs)
        loss = trainer._compute_loss(trainer.model, _batch([*better, *worse]), False)
    elif objective == "kto":
        labeled = Dataset.from_list([{"prompt": "w3 ", "completion": "w4 w5", "label": label} for label in LABELS])
        config = KTOConfig(**common, per_device_train_batch_size=PAIRS, **settings)
        trainer = KTOTrainer(**given, ref_model=model_of(1.5), args=config, train_dataset=labeled)
        rows = [good if label else bad for good, bad, label in zip(better, worse, LABELS, strict=True)]
        other = [(prompt, rows[place - 1][1]) for place, (prompt, _) in enumerate(rows)]
        loss = trainer._compute_loss(trainer.model, {**_batch(rows), **_batch(other, "KL_"), "label": torch.tensor(LABELS)}, False)
    else:
        if objective == "orpo":
            made = {"beta": settings["orpo_weight"]}
            trainer = ORPOTrainer(**given, args=ORPOConfig(**common, **made), train_dataset=pairs)
        else:
            made = {name: value for name, value in settings.items() if name != "sft_weight"}
            config = CPOConfig(**common, **made, loss_type="simpo", cpo_alpha=settings.get("sft_weight", 0.0))
            trainer = CPOTrainer(**given, args=config, train_dataset=pairs)
        batch: dict[str, torch.Tensor] = {}
        for side, rows in (("chosen", better), ("rejected", worse)):
            batch |= {f"{side}_{name}": value for name, value in _batch(rows).items()}
            batch[f"{side}_labels"] = batch[f"{side}_input_ids"].masked_fill(batch.pop(f"{side}_completion_mask") == 0, -100)
        loss, _ = trainer.get_batch_loss_metrics(trainer.model, batch)
    loss.backward()
    return seen_of(trainer.model, loss.item())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        found = {name: _of_trl(name.split()[0], settings, folder) for name, settings in CASES.items()}
    json.dump(found, sys.stdout, indent=4)
