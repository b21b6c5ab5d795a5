"""What is otherwise than when a run began, and what of that may be: the one list of harmless changes (docs/decisions/0009)."""

from collections.abc import Mapping
from dataclasses import dataclass

from luthier.errors import RunError
from luthier.reporting import Reporter
from luthier.run_folder import RunFolder

PRINTED = "only what is printed or written beside"
KEPT = "how the state is kept, not what it is"
AFTERWARDS = "read after the training"
MEASURED = "measures at other steps; the updates are the same"
ENDS = "says when to end; the updates are the same"
CONTENT = "what it holds is compared"
ROUNDING = "the same to rounding, no longer to the bit"
PATCH = "a patch release; the same to rounding"
HARMLESS = {
    # what                                why a run goes on with another value
    "training.logging_steps":             PRINTED,
    "training.rows_file":                 PRINTED,
    "evaluation.sample_answers":          PRINTED,
    "report_to":                          PRINTED,
    "training.save_strategy":             KEPT,
    "training.save_steps":                KEPT,
    "training.save_minutes":              KEPT,
    "training.save_total_limit":          KEPT,
    "training.keep_best":                 KEPT,
    "training.async_save":                KEPT,
    "evaluation.every_steps":             MEASURED,
    "evaluation.in_loop_rows":            MEASURED,
    "evaluation.general":                 MEASURED,
    "evaluation.early_stopping_patience": ENDS,
    "evaluation.early_stopping_threshold": ENDS,
    "evaluation.metrics":                 AFTERWARDS,
    "evaluation.max_rows":                AFTERWARDS,
    "evaluation.base_rows":               AFTERWARDS,
    "evaluation.shots":                   AFTERWARDS,
    "evaluation.max_new_tokens":          AFTERWARDS,
    "data.train":                         CONTENT,
    "data.eval":                          CONTENT,
    "data.replay_from":                   CONTENT,
    "model":                              CONTENT,
    "template":                           CONTENT,
    "tokenizer.path":                     CONTENT,
    "init_from":                          CONTENT,
    "device":                             "the device itself is compared",
    "devices":                            ROUNDING,
    "nodes":                              ROUNDING,
    "wrapping":                           ROUNDING,
    "sequence_parallel":                  ROUNDING,
    "device_map":                         ROUNDING,
    "output_dir":                         "the run stays where it is",
    "resume":                             "says when to resume",
    "max_memory":                         ROUNDING,
    "training.micro_batch_tokens":        ROUNDING,
    "training.gradient_checkpointing":    ROUNDING,
    "training.share_prefixes":            ROUNDING,
    "training.side_by_side":              ROUNDING,
    "training.cache_frozen_layers":       ROUNDING,
    "training.compile":                   ROUNDING,
    "training.deterministic":             ROUNDING,
    "processor":                          ROUNDING,
    "system":                             "the arithmetic is torch's and numpy's",
    "python":                             "the arithmetic is torch's and numpy's",
    "host":                               "a run may move",
    "threads":                            "the run's own number is used",
    "tokenizers":                         "its tokens are compared",
    "safetensors":                        "the format is fixed, and every file has its sha256",
}  # fmt: skip
# Of these a release with another last number is harmless, and no other.
LIBRARIES = {"luthier", "torch", "transformers", "peft", "numpy", "bitsandbytes", "schedulefree"}
HASH_LETTERS = 12


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is otherwise. `harmless`: why the run may go on all the same, or ""."""

    what: str
    then: object
    now: object
    harmless: str

    def __str__(self) -> str:
        if self.what == "data":
            return f"the training rows have changed ({_short(self.then)} then, {_short(self.now)} now)"
        return f"{self.what} was {_short(self.then)} and is now {_short(self.now)}"


def between(then: Mapping[str, object], now: Mapping[str, object]) -> list[Difference]:
    """What is not as it was, of the things that both sides know, in the order of `then`."""
    return [
        Difference(what, then[what], now[what], _harmless(what, then[what], now[what])) for what in then if what in now and then[what] != now[what]
    ]


def _harmless(what: str, then: object, now: object) -> str:
    if what in LIBRARIES:
        return PATCH if str(then).split(".")[:2] == str(now).split(".")[:2] else ""
    if what.startswith("checks."):
        return "read by luthier data check only"
    if what.startswith("launch."):
        return "how its processes are started"
    return HARMLESS.get(what, "")


def tell(differences: list[Difference], run: RunFolder, reporter: Reporter) -> None:
    """Show the differences as a table, and keep them in the run's log."""
    if not differences:
        return
    rows = [[one.what, _short(one.then), _short(one.now), f"yes: {one.harmless}" if one.harmless else "no"] for one in differences]
    reporter.table(["what", "then", "now", "harmless?"], rows, title=f"otherwise than when {run.name} began")
    for one in differences:
        run.say(f"otherwise than at the beginning: {one}" + (f" (harmless: {one.harmless})" if one.harmless else ""))


def refuse(differences: list[Difference], run: RunFolder) -> None:
    """Raises RunError where one of the differences is not harmless."""
    harmful = [one for one in differences if not one.harmless]
    if not harmful:
        return
    back = ", ".join(f"{one.what} {_short(one.then)}" if one.what in LIBRARIES else one.what for one in harmful)
    raise RunError(
        "; ".join(map(str, harmful)),
        where=str(run.path),
        next_step=f"put back as it was: {back}; or begin a new run (docs/runs.md lists what may change)",
    )


def _short(value: object) -> str:
    """A value for people; a sha256 is cut."""
    text = "nothing" if value is None else str(value)
    return text[:HASH_LETTERS] if len(text) == 64 and all(letter in "0123456789abcdef" for letter in text) else text
