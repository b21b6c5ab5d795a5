"""Everything that can go wrong because of something a user can change.

LuthierError          a problem with a place and a next step
├── ConfigError       a setting: unknown, of the wrong kind, impossible beside another, without effect
├── DataError         rows that cannot be read or trained
├── ModelError        a model that cannot be found, fetched, verified or loaded
├── RunError          a run folder that is missing, unfinished or not writable
│   └── RunInUse      another process works in it (exit code 75)
├── MachineError      the machine is not enough: its memory, or its disk (exit code 5)
│   └── OutOfMemory   its memory
├── ParityError    an exported artifact does not answer as the trained model does (exit code 4)
├── VerificationFailed  a check of luthier verify (exit code 3)
├── NotFiniteError    NaN or infinity where training cannot go on (exit code 6)
└── CallError         a command that was called wrongly (exit code 2)
"""

# What torch, its allocators and its libraries say; on a CPU they have no class of their own for it.
SHORTAGES = ("out of memory", "can't allocate memory", "not enough memory", "bad allocation", "bad_alloc", "ALLOC_FAILED")


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


class RunInUse(RunError):
    """Another process works in the run folder; later it may be free (75 is EX_TEMPFAIL of sysexits.h)."""

    exit_code = 75


class MachineError(LuthierError):
    """The machine is not enough: its memory for one row, or its disk for one save."""

    exit_code = 5


class OutOfMemory(MachineError):
    """The memory is not enough, in pieces as small as they come too."""


class VerificationFailed(LuthierError):
    """A check of luthier verify failed."""

    exit_code = 3


class ParityError(LuthierError):
    """What was exported does not answer as the trained model does."""

    exit_code = 4


class NotFiniteError(LuthierError):
    """The numbers of a run are not finite, and training would only go on from them."""

    exit_code = 6


class CallError(LuthierError):
    """The command line was called wrongly."""

    exit_code = 2


def is_shortage(error: BaseException) -> bool:
    """Whether an error of Python, numpy or torch says that memory could not be had."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(words in str(error) for words in SHORTAGES))
