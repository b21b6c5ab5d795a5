"""One training run as plain Transformers `Trainer` and PEFT: nothing of Luthier is needed to run this file.

It was written by `luthier init --script trainer` from the settings below: the same rows in the same order, the same tokens with the
same ones trained, the same adapter at the start, the same optimizer and rates. The losses of each update are written to
losses.json in OUTPUT; in fp32 without dropout they are those of `luthier train` to about three decimals. For one device.

Needs: pip install torch transformers peft accelerate
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

# <settings>

HERE = Path(__file__).resolve().parent
IGNORED = -100  # the label of a token that is not trained
Example = dict[str, list[int]]


def read_chat(messages: list[dict[str, str]], tokenizer: Any) -> Example:
    """Trained is what the assistant says: from the end of the generation prompt to the end-of-turn token."""

    def ids(turns: list[dict[str, str]], **options: Any) -> list[int]:
        text = tokenizer.apply_chat_template(turns, tokenize=False, **options)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    special = set(tokenizer.all_special_ids)
    tokens = ids(messages)
    labels = [IGNORED] * len(tokens)
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            start, end = len(ids(messages[:place], add_generation_prompt=True)), len(ids(messages[: place + 1]))
            # White space that the template puts after the end of turn is not the model's to say.
            while end > start and tokens[end - 1] not in special and not tokenizer.decode(tokens[end - 1 : end]).strip():
                end -= 1
            labels[start:end] = tokens[start:end]
            if end == start or (place == len(messages) - 1 and tokens[end - 1] not in special):
                tokens, labels = [*tokens, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id]
    return {"input_ids": tokens, "labels": labels}


def read_plain(prompt: str, answer: str, tokenizer: Any) -> Example:
    """A prompt and its completion as they stand, or a text that is trained whole (an empty prompt)."""
    beginning = [token for token in tokenizer("")["input_ids"][:1] if token == tokenizer.bos_token_id]
    prompt_ids = beginning + list(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    answer_ids = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return {"input_ids": prompt_ids + answer_ids, "labels": [IGNORED] * len(prompt_ids) + answer_ids}


def read_example(row: dict[str, Any], tokenizer: Any) -> Example:
    if "messages" in row:
        return read_chat(row["messages"], tokenizer)
    return read_plain(row.get("prompt", ""), row.get("completion", row.get("text", "")), tokenizer)


def batches_of(rows: int) -> list[list[int]]:
    """The rows of each update: every epoch is a new permutation, and the epochs follow each other without a gap."""
    seen = MAX_STEPS * BATCH_SIZE if MAX_STEPS else max(1, round(rows * EPOCHS))
    epochs = math.ceil(seen / rows)
    order = [int(row) for epoch in range(epochs) for row in np.random.Generator(np.random.Philox(key=[SEED, epoch])).permutation(rows)]
    return [order[start : min(start + BATCH_SIZE, seen)] for start in range(0, seen, BATCH_SIZE)]


def rate_at(update: int, updates: int) -> float:
    """The learning rate of an update (from 0) as a share of the peak: a linear rise, then SCHEDULE down to zero."""
    warmup = min(updates, math.ceil(WARMUP_RATIO * updates - 1e-9) if WARMUP_STEPS is None else WARMUP_STEPS)
    if update < warmup:
        return (update + 1) / warmup
    progress = (update - warmup) / max(1, updates - warmup)
    return {"linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress)), "constant": 1.0}[SCHEDULE]


def pad(examples: list[Example]) -> dict[str, torch.Tensor]:
    longest = max(len(example["input_ids"]) for example in examples)
    missing = [longest - len(example["input_ids"]) for example in examples]
    return {
        "input_ids": torch.tensor([example["input_ids"] + [0] * gap for example, gap in zip(examples, missing, strict=True)]),
        "labels": torch.tensor([example["labels"] + [IGNORED] * gap for example, gap in zip(examples, missing, strict=True)]),
        "attention_mask": torch.tensor([[1] * (longest - gap) + [0] * gap for gap in missing]),
    }


def mean_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """One mean over all trained tokens of the update, in nats."""
    logits = outputs.logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)


class OrderedTrainer(Trainer):
    """A Trainer that takes the batches as they are given."""

    batches: list[list[int]]

    def get_train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_dataset, batch_sampler=self.batches, collate_fn=pad)


def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    lines = (HERE / ROWS).read_text(encoding="utf-8").split("\n")
    examples = [read_example(json.loads(line), tokenizer) for line in lines if line]
    batches = batches_of(len(examples))

    use_cpu = DEVICE == "cpu" or not torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16 if PRECISION == "bf16" else torch.float32)
    model.to("cpu" if use_cpu else "cuda")
    torch.manual_seed(SEED)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **LORA))

    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, betas=ADAM_BETAS, eps=ADAM_EPSILON, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: rate_at(update, len(batches)))
    arguments = TrainingArguments(
        output_dir=str(HERE / OUTPUT),
        max_steps=len(batches),
        per_device_train_batch_size=BATCH_SIZE,
        max_grad_norm=MAX_GRAD_NORM,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        use_cpu=use_cpu,
        seed=SEED,
    )
    trainer = OrderedTrainer(model, arguments, train_dataset=examples, optimizers=(optimizer, schedule), compute_loss_func=mean_loss)
    trainer.batches = batches
    trainer.train()

    model.save_pretrained(HERE / OUTPUT)
    tokenizer.save_pretrained(HERE / OUTPUT)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    (HERE / OUTPUT / "losses.json").write_text(json.dumps(losses), encoding="utf-8")


if __name__ == "__main__":
    main()
