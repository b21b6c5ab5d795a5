"""Settings that were given: was each of them read by something that does the work?"""

from pathlib import Path

from luthier.config import reads
from luthier.recipes import evaluation, handover, training
from luthier.recipes.proofs.bench import Bench, failed, passed, with_values
from luthier.records import Proof
from luthier.reporting import Silent

# What another verb reads, which is not run here.
OTHER_VERBS = {
    # section     verb
    "checks": "luthier data check",
    "plan": "luthier plan",
}


def every_setting_is_read(bench: Bench) -> Proof:
    """One small run with its evaluation and its export, and what the other checks did, while every read of a setting is put down."""
    verbs = OTHER_VERBS if len(bench.ready.prepared.rows.held_out) else OTHER_VERBS | {"evaluation": "luthier eval RUN --data FILE"}
    given = [name for name in bench.asked.given if name.partition(".")[0] not in verbs]
    elsewhere = sorted(set(bench.asked.given) - set(given))
    if reads.unread(given, bench.reads):
        _run_once(bench)
    unread = reads.unread(given, bench.reads)
    others = f"; {len(elsewhere)} are for {' and '.join({verbs[name.partition('.')[0]] for name in elsewhere})}" if elsewhere else ""
    numbers = {"given": len(given), "unread": unread, "of_other_verbs": elsewhere}
    if unread:
        places = ", ".join(f"{name} ({Path(bench.asked.given[name]).name})" for name in unread)
        return failed(f"given, and read by nothing: {places}", "take it out, or look in the docs for what it goes with", **numbers)
    return passed(f"{len(given)} settings were given, and all of them were read{others}", **numbers)


def _run_once(bench: Bench) -> None:
    """What a run reads from its beginning to its end."""
    bench.drop_engine()
    values = {"output_dir": str(bench.scratch / "settings"), "training.max_steps": 1, "data.max_rows": 2, "evaluation.max_rows": 1}
    values |= {"training.batch_size": 1, "evaluation.max_new_tokens": 4, "evaluation.sample_answers": 1}
    run = training.fit(with_values(bench.config, values), Silent())
    if len(bench.ready.prepared.rows.held_out):
        evaluation.evaluate(run, Silent())
    handover.export(run, "adapter" if run.adapter.is_dir() else "merged", folder=bench.scratch / "once")
