"""Luthier's plain twin, in the number format of the tools that are held against its losses. Its speed is shown to nobody.

What is trained is kept in fp32 and rounded for each update, as in every tool.
"""

import time
from pathlib import Path

import torch
from protocol import Record, Update, read_job

from luthier.engine import reference
from luthier.engine.masters import Masters
from luthier.models import adapters, load
from luthier.records import Source, TokenizedExample


def main() -> None:
    job = read_job()
    record = Record(job)
    model = load.load_model(Path(job.model), job.setting["precision"], "cpu").requires_grad_(job.method == "full")
    if job.method == "lora":
        model = adapters.load_adapter(model, Path(job.adapter), trainable=True)
    masters = Masters(model)
    parameters = list(masters.weights.values())
    adam = torch.optim.AdamW(parameters, lr=job.learning_rate, weight_decay=0.0)
    rows = [TokenizedExample(row["ids"], [bool(one) for one in row["trained"]], Source("rows", n)) for n, row in enumerate(job.read_rows(), start=1)]
    for start in range(0, len(rows), job.batch_size):
        record.begin_micro_batch()
        began = time.perf_counter()
        batch = rows[start : start + job.batch_size]
        loss = reference.forward_backward(model, batch)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, 1.0))
        adam.step()
        masters.copy_back()
        masters.forget_gradients()
        tokens = sum(len(row.token_ids) for row in batch)
        trained = sum(sum(row.trained[1:]) for row in batch)
        record.end_update(Update(loss, norm, time.perf_counter() - began, tokens, tokens, trained))
    record.answer()


if __name__ == "__main__":
    main()
