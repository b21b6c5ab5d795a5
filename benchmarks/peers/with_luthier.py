"""Luthier: the two calls that its own training loop makes."""

import time

from protocol import Job, Record, Update, read_job

from luthier.engine import Engine
from luthier.records import Source, TokenizedExample


def open_engine(job: Job) -> Engine:
    trained = {"full": True} if job.method == "full" else {"adapter": job.adapter}
    engine = Engine.open(job.model, **trained, precision=job.setting["precision"], compile=job.setting.get("compile", False))
    for name in ("share_prefixes", "micro_batch_tokens"):
        if name in job.setting:
            getattr(engine, name)  # an attribute of another name would be set and change nothing
            setattr(engine, name, job.setting[name])
    if engine.plain_reason:
        raise SystemExit(f"the plain path is used: {engine.plain_reason}")
    return engine


def main() -> None:
    job = read_job()
    record = Record(job)
    engine = open_engine(job)
    rows = [TokenizedExample(row["ids"], [bool(one) for one in row["trained"]], Source("rows", n)) for n, row in enumerate(job.read_rows(), start=1)]
    for start in range(0, len(rows), job.batch_size):
        record.begin_micro_batch()
        began = time.perf_counter()
        measured = engine.forward_backward(rows[start : start + job.batch_size])
        norm = engine.optimizer_step(job.learning_rate)
        loss, norm = float(measured.loss), float(norm)
        seconds = time.perf_counter() - began
        record.end_update(Update(loss, norm, seconds, measured.logical_tokens, measured.executed_tokens, measured.trained_tokens))
    record.answer()


if __name__ == "__main__":
    main()
