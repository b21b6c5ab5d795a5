"""ms-swift's own training pipeline on rows that are tokens already, with checkpointing off."""

from typing import Any

from protocol import labels, read_job
from swift.arguments import SftArguments
from swift.pipelines.train.sft import SwiftSft
from watching import Watcher, arguments

JOB = read_job()
WATCHER = Watcher(JOB)


class OnTokens(SwiftSft):
    """The pipeline, but for reading rows and writing them as tokens."""

    def _prepare_dataset(self) -> list[Any]:
        rows = [{"input_ids": row["ids"], "labels": labels(row), "length": len(row["ids"])} for row in JOB.read_rows()]
        return [rows, None]

    def train(self, trainer: Any) -> Any:
        trainer.add_callback(WATCHER)
        return super().train(trainer)


def main() -> None:
    at_once = min(8, JOB.batch_size)
    method = {"tuner_type": "full"} if JOB.method == "full" else {"tuner_type": "lora", "adapters": [JOB.adapter]}
    settings = {
        **arguments(JOB),
        **method,
        "model": JOB.model,
        "model_type": "llama",
        "template": "chatml",
        "cached_dataset": ["rows"],
        "torch_dtype": "bfloat16",
        "bf16": True,
        "gradient_checkpointing": False,
        "train_dataloader_shuffle": False,
        "dataloader_num_workers": 0,
        "eval_strategy": "no",
        "create_checkpoint_symlink": False,
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": JOB.batch_size // at_once,
    }
    OnTokens(SftArguments(**settings)).main()
    WATCHER.record.answer()


if __name__ == "__main__":
    main()
