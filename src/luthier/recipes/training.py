"""The recipe of a run's objective: what trains, where any settings file may come; and which run it goes on with."""

from pathlib import Path

from luthier.config.load import Config
from luthier.diagnose.report import write_report
from luthier.recipes import preference, sft
from luthier.reporting import Reporter, Silent
from luthier.run_folder import RunFolder, list_runs
from luthier.train import resuming, session


def fit(
    config: Config, reporter: Reporter | None = None, *, title: str = "", resume: RunFolder | None = None, watch: session.Watch | None = None
) -> RunFolder:
    """Train as `config` says; see sft.fit (answers) and preference.fit (rows that judge).

    `resume` is a run that was stopped; with `resume: auto` in the settings one of the same settings is looked for.
    `watch` makes one more watcher of the updates, which may end the run by an error of its own.
    """
    reporter = reporter or Silent()
    if resume is None and config.settings.resume == "auto":
        resume = resuming.unfinished(config, reporter)
    if resume and resume.trained.is_dir() and not resume.report.is_file():
        write_report(resume)  # it was ended between its last two steps
        reporter.say(f"{resume.path} was trained to its end already; its report is written")
        return resume
    if resume:
        resuming.require_not_ended(resume)
        reporter.say(f"goes on with {resume.path}")
    recipe = sft.fit if config.settings.objective == "sft" else preference.fit
    return recipe(config, reporter, title=title, resume=resume, watch=watch)


def newest_stopped(config: Config) -> RunFolder:
    """The run that `luthier train CONFIG --resume` goes on with. Raises CallError where there is none."""
    return resuming.newest_stopped(config)


def newest(config: Config) -> RunFolder:
    """The newest run of these settings' output folder: what processes that were started elsewhere have left."""
    return list_runs(Path(config.beside(config.settings.output_dir)))[-1]
