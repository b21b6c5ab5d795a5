"""litgpt's model, LoRA layers and chunked loss, driven as its finetune/lora.py does; its adapters are its own random ones.

Its own loop takes a mean of micro-batch means and does not clip. Here every trained token counts alike and gradients are clipped at 1, as with
every other tool.
"""

import math
import time
from pathlib import Path

import lightning
import torch
from litgpt.lora import GPT, Config, mark_only_lora_as_trainable
from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint
from litgpt.utils import chunked_cross_entropy, load_checkpoint
from protocol import Job, Record, Update, labels, read_job

NAME = "SmolLM2-135M-Instruct"
ROWS_AT_ONCE = 8
EVERY_LAYER = {f"lora_{part}": True for part in ("query", "key", "value", "projection", "mlp")}


def converted(job: Job) -> Path:
    """The model as litgpt keeps it, in the scratch folder."""
    folder = Path(job.scratch) / NAME
    folder.mkdir()
    for file in Path(job.model).iterdir():
        (folder / file.name).symlink_to(file)
    convert_hf_checkpoint(folder, model_name=NAME)
    return folder / "lit_model.pth"


def main() -> None:
    job = read_job()
    record = Record(job)
    rows = job.read_rows()
    checkpoint = converted(job)
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision=job.setting.get("litgpt", "bf16-true"))
    fabric.seed_everything(0)
    config = Config.from_name(NAME, lora_r=16, lora_alpha=32, lora_dropout=0.0, **EVERY_LAYER)
    with fabric.init_module(empty_init=False):
        model = GPT(config)
    mark_only_lora_as_trainable(model)
    model = fabric.setup_module(model)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adam = fabric.setup_optimizers(torch.optim.AdamW(parameters, lr=job.learning_rate, weight_decay=0.0))
    load_checkpoint(fabric, model, checkpoint, strict=False)
    model.max_seq_length = max(len(row["ids"]) for row in rows)
    model.train()
    for start in range(0, len(rows), job.batch_size):
        record.begin_micro_batch()
        began = time.perf_counter()
        update = rows[start : start + job.batch_size]
        trained = sum(sum(row["trained"][1:]) for row in update)
        loss_sum, executed = 0.0, 0
        for place in range(0, len(update), ROWS_AT_ONCE):
            batch = update[place : place + ROWS_AT_ONCE]
            ids = _filled([row["ids"] for row in batch], 0)
            targets = _filled([labels(row) for row in batch], -100)
            logits = model(ids, lm_head_chunk_size=128)
            logits[-1] = logits[-1][..., :-1, :]
            share = sum(sum(row["trained"][1:]) for row in batch) / trained
            loss = chunked_cross_entropy(logits, targets[..., 1:]) * share
            fabric.backward(loss)
            loss_sum += float(loss)
            executed += ids.numel()
        norm = float(fabric.clip_gradients(model, adam, max_norm=1.0))
        adam.step()
        adam.zero_grad()
        logical = sum(len(row["ids"]) for row in update)
        record.end_update(Update(loss_sum, norm if math.isfinite(norm) else 0.0, time.perf_counter() - began, logical, executed, trained))
    record.answer()


def _filled(values: list[list[int]], filler: int) -> torch.Tensor:
    longest = max(len(one) for one in values)
    return torch.tensor([one + [filler] * (longest - len(one)) for one in values])


if __name__ == "__main__":
    main()
