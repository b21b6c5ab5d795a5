"""Teach a model to answer as the rows do. Read this first: it is the whole road, top to bottom."""

from luthier.config.load import Config
from luthier.diagnose.report import write_report
from luthier.diagnose.table import first_look
from luthier.evaluate import in_loop, metrics
from luthier.plan import shape
from luthier.reporting import Reporter, Silent
from luthier.run_folder import RunFolder
from luthier.serve import contract
from luthier.train import measuring, session


def fit(
    config: Config, reporter: Reporter | None = None, *, title: str = "", resume: RunFolder | None = None, watch: session.Watch | None = None
) -> RunFolder:
    """Train as `config` says; returns the run folder, with the adapter in PEFT's format (method: full: the model in Transformers') and the report.

    Broken data stops it before a model is fetched or loaded. `resume` goes on from that run's newest whole checkpoint.
    `watch` makes one more watcher of the updates.
    """
    reporter = reporter or Silent()
    session.require_objective(config, {"sft"})
    config, rows = session.read(config, reporter, resume)
    asked = config.settings
    metrics.check(asked.evaluation.metrics, [row.answer for row in rows.held_out], config.file.parent)

    ready = session.tokenize(config, rows, reporter)
    prepared = ready.prepared
    of_rows = shape.of_tokens(prepared.lengths, prepared.trained_tokens, prepared.shared_prefix_tokens)
    plan = session.resolve(asked, ready, of_rows, reporter)

    with session.opened(config, plan, ready, len(prepared.train), reporter, title=title, resume=resume) as run:
        engine = session.start(run, plan, ready, reporter, resume=resume is not None)
        place = session.place(run, plan, ready, engine, resume is not None, reporter)
        contract.write(run, ready.tokenizer, engine.stop_ids, prepared.rows.train)
        score = in_loop.means(asked.evaluation.metrics, config.file.parent)
        task = session.Task(prepared.train, prepared.lengths, lambda: measuring.of_answers(engine, prepared.held_out), score)
        session.check(run, engine, plan, ready, task, reporter)
        session.train(run, engine, plan, prepared, task, place, reporter, watch)

        engine.save_state(run.model if asked.method == "full" else run.adapter, base_name=asked.model)
        first_look(run, reporter)
        write_report(run)
        run.say("finished")
    return run
