"""What the machine had to bear: memory that was short, and rows that came too slowly. And whether the model is asked as it was trained."""

from luthier.diagnose.evidence import LEAST_UPDATES, Evidence
from luthier.diagnose.finding import Cure, Finding

# Of the machine's memory, or of the time of an update.
NEARLY_FULL, SLOW_SHARE = 0.95, 0.25


def memory_pressure(evidence: Evidence) -> list[Finding] | str:
    """The memory was not enough for the planned micro-batches, or was nearly full."""
    peak = max((int(row["peak_bytes"]) for row in evidence.steps), default=0)
    there = int(evidence.plan.get("machine", {}).get("memory_bytes", 0))
    if not peak:
        return "no update was measured"
    cuts = evidence.smaller_cuts
    if not cuts and (not there or peak < NEARLY_FULL * there):
        return []
    budget = int(cuts[-1]["micro_batch_tokens"] if cuts else evidence.settings.training.micro_batch_tokens)
    smaller = budget if cuts else max(64, budget // 2)
    said = (
        f"{len(cuts)} times the memory was not enough (first at step {cuts[0]['step']}), and micro-batches have {budget:,} tokens since"
        if cuts
        else ""
    )
    full = f"the run took {peak / 1e9:.2f} GB of {there / 1e9:.2f} GB" if there and peak >= NEARLY_FULL * there else ""
    return [
        Finding(
            "memory_pressure",
            "warning",
            "memory that is short",
            "; ".join(part for part in (said, full) if part),
            "work is done twice where it did not fit, and the next longer row may end the run",
            [
                Cure(f"training.micro_batch_tokens={smaller} (the result is the same)", {"training.micro_batch_tokens": smaller}),
                Cure("training.gradient_checkpointing=full, which needs less and takes longer", {"training.gradient_checkpointing": "full"}),
                Cure("method=qlora, a shorter data.max_length, or a smaller model"),
            ],
            {"peak_bytes": peak, "memory_bytes": there, "smaller_cuts": [dict(row) for row in cuts]},
        )
    ]


def slow_data(evidence: Evidence) -> list[Finding] | str:
    """A large share of the time went into reading rows."""
    reading, seconds = evidence.reading_seconds, sum(float(row["seconds"]) for row in evidence.steps)
    if reading is None or len(evidence.steps) < LEAST_UPDATES:
        return "the time that rows take was not recorded, or there were too few updates"
    share = reading / seconds if seconds else 0.0
    if share < SLOW_SHARE:
        return []
    return [
        Finding(
            "slow_data",
            "warning",
            "rows that come slowly",
            f"{reading:.1f} s of {seconds:.1f} s ({share:.0%}) went into reading the tokens of the rows",
            "the processor waits for the disk",
            [
                Cure("put the cache on a local disk: export LUTHIER_HOME=FOLDER (a network disk is slow at many small reads)"),
                Cure("leave memory free for the system's own cache of files"),
            ],
            {"reading_seconds": round(reading, 2), "seconds": round(seconds, 2)},
        )
    ]


def template_mismatch(evidence: Evidence) -> list[Finding] | str:
    """The run's prompts are not what its model knows, or not what they were when it was trained."""
    if not evidence.run.contract.is_file():
        return "the run has no contract"
    if not evidence.probed.template:
        return []
    return [
        Finding(
            "template_mismatch",
            "warning",
            "another chat template",
            "; ".join(evidence.probed.template),
            "a model that is asked in another form than it knows has to learn the form first, or answers as if it had learned nothing",
            [
                Cure("the model's own: template=auto, and train again", {"template": "auto"}),
                Cure("put back the tokenizer and the template that the run was trained with (RUN/adapter keeps them)"),
                Cure("luthier data show FILE shows the rows as the model sees them"),
            ],
            {"differences": list(evidence.probed.template)},
        )
    ]
