"""Watches a Trainer of Transformers from outside: what it runs, when, and what it logs. For every tool that is built on it."""

import time
from typing import Any

from protocol import Job, Record, Update
from transformers import TrainerCallback


class Watcher(TrainerCallback):
    """Counts the tokens that reach the model and times each update from its first micro-batch to its optimizer's end."""

    def __init__(self, job: Job) -> None:
        self.record = Record(job)
        self.counts = {"logical": 0, "executed": 0, "trained": 0}
        self.began = 0.0
        self.seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, args: Any, inputs: dict[str, Any]) -> None:
        if not module.training:
            return
        self.record.begin_micro_batch()
        ids, labels, mask = inputs["input_ids"], inputs.get("labels"), inputs.get("attention_mask")
        self.counts["executed"] += ids.numel()
        self.counts["logical"] += int(mask.sum()) if mask is not None and mask.dim() == 2 else ids.numel()
        if labels is not None:
            self.counts["trained"] += int((labels[:, 1:] != -100).sum())

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.counts = dict.fromkeys(self.counts, 0)
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.seconds = time.perf_counter() - self.began

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **others: Any) -> None:
        """With logging_steps=1 this comes right after each update."""
        if logs and "loss" in logs:
            self.record.end_update(Update(float(logs["loss"]), float(logs["grad_norm"]), self.seconds, **self.counts))


def arguments(job: Job) -> dict[str, Any]:
    """TrainingArguments that make every tool do the same updates: AdamW, constant rate, clipping at 1, rows in order, nothing saved."""
    return {
        "output_dir": job.scratch,
        "max_steps": job.updates,
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "seed": 0,
    }
