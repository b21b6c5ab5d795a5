"""Teach a model which answers are better: pairs of a better and a worse answer (DPO, ORPO, SimPO), or answers that are labeled (KTO)."""

from luthier.config.load import Config
from luthier.config.preference import ROWS
from luthier.diagnose.report import write_report
from luthier.diagnose.table import first_look
from luthier.evaluate import in_loop, metrics
from luthier.plan import shape
from luthier.reporting import Reporter, Silent
from luthier.run_folder import RunFolder
from luthier.serve import contract
from luthier.train import preference, session


def fit(
    config: Config, reporter: Reporter | None = None, *, title: str = "", resume: RunFolder | None = None, watch: session.Watch | None = None
) -> RunFolder:
    """Train as `config` says; returns the run folder, as sft.fit does. Its metrics hold rewards, margins and accuracies by TRL's names.

    dpo and kto compare with the model as it is before the training: what it makes of every row is computed once and kept in the run folder.
    """
    reporter = reporter or Silent()
    session.require_objective(config, set(ROWS))
    config, rows = session.read(config, reporter, resume)
    asked = config.settings
    metrics.check(asked.evaluation.metrics, [row.answer for row in rows.held_out], config.file.parent)

    ready = session.tokenize(config, rows, reporter)
    prepared = ready.prepared
    judged, held_out = preference.judged_rows(prepared, asked.objective)
    of_rows = shape.of_judged(prepared.lengths, prepared.trained_tokens, prepared.shared_prefix_tokens, judged.per_row, len(held_out))
    plan = session.resolve(asked, ready, of_rows, reporter)

    with session.opened(config, plan, ready, len(judged), reporter, title=title, resume=resume) as run:
        engine = session.start(run, plan, ready, reporter, resume=resume is not None)
        task = preference.task(plan.settings, engine, prepared, run, reporter, in_loop.means(asked.evaluation.metrics, config.file.parent))
        place = session.place(run, plan, ready, engine, resume is not None, reporter)
        contract.write(run, ready.tokenizer, engine.stop_ids, prepared.rows.train)
        session.check(run, engine, plan, ready, task, reporter)
        session.train(run, engine, plan, prepared, task, place, reporter, watch)

        engine.save_state(run.model if asked.method == "full" else run.adapter, base_name=asked.model)
        first_look(run, reporter)
        write_report(run)
        run.say("finished")
    return run
