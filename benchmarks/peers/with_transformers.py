"""A plain loop: Transformers' model, PEFT's adapter, padded micro-batches, torch's AdamW. What one writes in an afternoon."""

import time
from typing import Any

import torch
from peft import PeftModel
from protocol import Record, Update, labels, read_job
from transformers import AutoModelForCausalLM

ROWS_AT_ONCE = 8


def padded(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    longest = max(len(row["ids"]) for row in rows)

    def filled(values: list[list[int]], filler: int) -> torch.Tensor:
        return torch.tensor([one + [filler] * (longest - len(one)) for one in values])

    mask = [[1] * len(row["ids"]) for row in rows]
    return {
        "input_ids": filled([row["ids"] for row in rows], 0),
        "attention_mask": filled(mask, 0),
        "labels": filled([labels(row) for row in rows], -100),
    }


def main() -> None:
    job = read_job()
    record = Record(job)
    rows = job.read_rows()
    model: Any = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.bfloat16 if job.setting["weights"] == "bf16" else torch.float32)
    if job.method == "lora":
        model = PeftModel.from_pretrained(model, job.adapter, is_trainable=True)
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adam = torch.optim.AdamW(parameters, lr=job.learning_rate, weight_decay=0.0)
    half = job.setting["precision"] == "bf16"
    for start in range(0, len(rows), job.batch_size):
        record.begin_micro_batch()
        began = time.perf_counter()
        update = rows[start : start + job.batch_size]
        trained = sum(sum(row["trained"][1:]) for row in update)
        loss_sum, executed = 0.0, 0
        for place in range(0, len(update), ROWS_AT_ONCE):
            batch = padded(update[place : place + ROWS_AT_ONCE])
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = model(**batch, num_items_in_batch=trained).loss
            loss.backward()
            loss_sum += float(loss)
            executed += batch["input_ids"].numel()
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, 1.0))
        adam.step()
        adam.zero_grad()
        logical = sum(len(row["ids"]) for row in update)
        record.end_update(Update(loss_sum, norm, time.perf_counter() - began, logical, executed, trained))
    record.answer()


if __name__ == "__main__":
    main()
