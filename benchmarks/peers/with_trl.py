"""TRL's SFTTrainer with PEFT, at its defaults or at the setting that the job names."""

from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from protocol import Job, labels, read_job
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
from watching import Watcher, arguments


class InOrder(SFTTrainer):
    """The same rows in each update as with every other tool."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(train_dataset or self.train_dataset)


def how(job: Job, tokens: int, longest: int) -> dict[str, Any]:
    """What the job's setting means as TRL's own arguments; `tokens` and `longest` are those of all rows."""
    setting = job.setting
    if setting["packing"]:
        # One pass over packs of the length of TRL's default (longer where a row is): so every row is trained once here too.
        length = max(1024, longest)
        packs = -(-tokens // length)
        rhythm = {"max_steps": -1, "num_train_epochs": 1, "gradient_accumulation_steps": -(-packs // job.updates)}
        size = {"packing": True, "max_length": length, "per_device_train_batch_size": 1, **rhythm}
    else:
        at_once = min(8, job.batch_size)
        size = {"max_length": max(1024, longest), "per_device_train_batch_size": at_once, "gradient_accumulation_steps": job.batch_size // at_once}
    formats = {"bf16": setting["precision"] == "bf16", "fp16": False}
    return {**formats, "gradient_checkpointing": setting["checkpointing"], **size}


def main() -> None:
    job = read_job()
    rows = job.read_rows()
    watcher = Watcher(job)
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.bfloat16 if job.setting["weights"] == "bf16" else torch.float32)
    if job.method == "lora":
        model = PeftModel.from_pretrained(model, job.adapter, is_trainable=True)
    dataset = Dataset.from_list([{"input_ids": row["ids"], "labels": labels(row)} for row in rows])
    lengths = [len(row["ids"]) for row in rows]
    trainer = InOrder(
        model,
        SFTConfig(**{**arguments(job), **how(job, sum(lengths), max(lengths))}),
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(job.model),
        callbacks=[watcher],
    )
    trainer.train()
    watcher.record.answer()


if __name__ == "__main__":
    main()
