"""The recipe of a run's objective: what trains, where any settings file may come."""

from luthier.config.load import Config
from luthier.recipes import preference, sft
from luthier.reporting import Reporter
from luthier.run_folder import RunFolder


def fit(config: Config, reporter: Reporter | None = None, *, resume: RunFolder | None = None) -> RunFolder:
    """Train as `config` says; see sft.fit (answers) and preference.fit (rows that judge)."""
    recipe = sft.fit if config.settings.objective == "sft" else preference.fit
    return recipe(config, reporter, resume=resume)
