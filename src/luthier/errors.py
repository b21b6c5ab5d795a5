"""Everything that can go wrong because of something a user can change.

LuthierError          a problem with a place and a next step
├── ConfigError       a setting: unknown, of the wrong kind, impossible beside another, without effect
├── DataError         rows that cannot be read or trained
├── ModelError        a model that cannot be found, fetched, verified or loaded
├── RunError          a run folder that is missing, unfinished or not writable
└── CallError         a command that was called wrongly (exit code 2)
"""


class LuthierError(Exception):
    """A problem that the user can act on: what, where, and the next step. All three are required."""

    exit_code = 1

    def __init__(self, problem: str, *, where: str, next_step: str) -> None:
        super().__init__(f"{where}: {problem}\n  Try: {next_step}")
        self.problem, self.where, self.next_step = problem, where, next_step


class ConfigError(LuthierError):
    """A setting is unknown, of the wrong kind, impossible, or would have no effect."""


class DataError(LuthierError):
    """Rows cannot be read, or nothing is left to train on."""


class ModelError(LuthierError):
    """A model cannot be found, fetched, verified or loaded."""


class RunError(LuthierError):
    """A run folder is missing, unfinished or cannot be written."""


class CallError(LuthierError):
    """The command line was called wrongly."""

    exit_code = 2
