"""One process of a run: what torchrun starts on each device, and `accelerate launch` too (scripts/train.py). Alone it is `luthier train`.

python -m luthier.launch.worker luthier.yaml [section.name=value ...] [--resume RUN]

Rank 0 runs the recipe; the others follow it (train/following.py). After a restart by torchrun the run goes on from its newest whole
checkpoint. Where LUTHIER_EXIT_CODE_FILE names a file, an orderly end writes its exit code there and is no failure for torchrun, which
would start again what cannot work.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from luthier import files
from luthier.config.launch_rules import one_process
from luthier.config.load import Config, load_config
from luthier.engine import ranks
from luthier.errors import LuthierError
from luthier.launch.starting import EXIT_CODE_FILE, RUN_FILE
from luthier.recipes import training
from luthier.reporting import Bar, Silent
from luthier.run_folder import RunFolder
from luthier.train import following, resuming
from luthier.train.watchers import tell

# torchrun's variables, and the one in which `accelerate launch` has its number format.
RESTARTS, JOB, PRECISION = "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"


class Lines(Silent):
    """Says lines; a bar would be torn by those of other processes."""

    def say(self, line: str) -> None:
        print(line, flush=True)

    def table(self, columns: list[str], rows: list[list[str]], title: str = "") -> None:
        for row in [columns, *rows]:
            self.say("  ".join(row))

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Bar]:
        self.say(title)
        with super().bar(title, total) as bar:
            yield bar


def main(arguments: Sequence[str] | None = None) -> None:
    """Run this process' part, and end with the exit code of `luthier train`."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(_run(_parser().parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m luthier.launch.worker", description="One process of a training run.")
    parser.add_argument("config", help="the settings file, such as luthier.yaml")
    parser.add_argument("overrides", nargs="*", help="settings to replace: section.name=value ...")
    parser.add_argument("--resume", metavar="RUN", help="go on with a run that was stopped: its folder")
    return parser


def _run(asked: argparse.Namespace) -> int:
    told = Path(os.environ[EXIT_CODE_FILE]) if EXIT_CODE_FILE in os.environ else None
    if told and told.is_file():
        return 0  # an earlier start ended in good order, and torchrun did not see that
    code = 0
    try:
        config = _config(asked)
        ranks.join(60 * config.settings.launch.timeout_minutes)
        since_s = -ranks.most(-_job_began_s())  # by the torchrun of any host that has been there longest
        if ranks.leads():
            _lead(config, RunFolder(Path(asked.resume)) if asked.resume else None, since_s)
        else:
            following.follow()
    except LuthierError as error:
        lost = error.where.startswith("rank ")  # one that torchrun starts again, with all others
        who = f"rank {ranks.rank()}: " if ranks.world() > 1 and not lost else ""
        print(f"luthier: {who}{error}", file=sys.stderr, flush=True)
        code = error.exit_code
        # Not of a signal: torchrun sends one too where a host comes or goes, and then starts all again.
        if told and not lost and code <= 128:
            files.write_text(told, str(code))
        if lost or not ranks.leads():
            return code
    ranks.leave()
    return 0 if told and told.is_file() else code


def _job_began_s() -> int:
    """When the process that started this one began, in seconds since 1970; 0 where the system does not tell."""
    try:
        ticks = int(Path(f"/proc/{os.getppid()}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
        booted = next(line for line in Path("/proc/stat").read_text(encoding="ascii").splitlines() if line.startswith("btime "))
    except OSError:
        return 0
    return int(booted.split()[1]) + ticks // os.sysconf("SC_CLK_TCK")


def _config(asked: argparse.Namespace) -> Config:
    """The settings, with what whoever started this process said where they do not: read again, so that what cannot stand together is refused."""
    config = load_config(asked.config, asked.overrides)
    return load_config(asked.config, [*asked.overrides, *said]) if (said := _said(config, asked.overrides)) else config


def _said(config: Config, overrides: Sequence[str]) -> list[str]:
    """Overrides from the variables of `accelerate launch` (its number format) and of torchrun (as many devices and hosts as there are)."""
    said = []
    precision, world = os.environ.get(PRECISION), int(os.environ.get("WORLD_SIZE", "1"))
    given = any(one.startswith("training.precision=") for one in overrides)
    if precision in ("bf16", "fp16") and not given and config.settings.training.precision == "auto":
        said.append(f"training.precision={precision}")
    if world > 1 and one_process(config.settings):
        here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
        said += [f"devices={here}", f"nodes={max(1, world // here)}"]
    return said


def _lead(config: Config, resume: RunFolder | None, since_s: int) -> None:
    reporter = Lines()
    began_s = time.monotonic()
    if lost := resuming.of_job(config, os.environ.get(JOB, ""), since_s):
        tell(lost, reporter, f"a process or a host came or was lost, and all were started again (restart {os.environ.get(RESTARTS, '0')})")
        resume = lost
    run = training.fit(config, reporter, resume=resume)
    reporter.say(f"run: {run.path} ({time.monotonic() - began_s:.0f} s)")
    if RUN_FILE in os.environ:
        files.write_text(Path(os.environ[RUN_FILE]), str(run.path.resolve()))


if __name__ == "__main__":
    main()
