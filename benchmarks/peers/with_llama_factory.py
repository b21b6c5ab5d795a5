"""LLaMA-Factory's own `run_exp` on rows that are tokens already, with checkpointing off."""

import importlib.machinery
import sys
import types
from pathlib import Path

from datasets import Dataset, DatasetDict
from protocol import labels, read_job
from watching import Watcher, arguments


def without_audio() -> None:
    """It imports torchaudio for rows with sound; the package index has it for CUDA only, and rows of text call nothing of it."""
    stand_in = types.ModuleType("torchaudio")
    stand_in.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    sys.modules["torchaudio"] = stand_in


def main() -> None:
    without_audio()
    from llamafactory.train.tuner import run_exp

    job = read_job()
    tokenized = Path(job.scratch) / "tokenized"
    rows = [{"input_ids": row["ids"], "attention_mask": [1] * len(row["ids"]), "labels": labels(row)} for row in job.read_rows()]
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(str(tokenized))
    watcher = Watcher(job)
    at_once = min(8, job.batch_size)
    method = {"finetuning_type": "full"} if job.method == "full" else {"finetuning_type": "lora", "adapter_name_or_path": job.adapter}
    settings = {
        **arguments(job),
        **method,
        "report_to": "none",
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": job.model,
        "template": "default",
        "dataset": "rows",
        "tokenized_path": str(tokenized),
        "disable_shuffling": True,
        "disable_gradient_checkpointing": True,
        "bf16": job.setting["precision"] == "bf16",
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": job.batch_size // at_once,
    }
    run_exp(settings, callbacks=[watcher])
    watcher.record.answer()


if __name__ == "__main__":
    main()
