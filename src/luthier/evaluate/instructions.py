"""IFEval (Zhou 2023, arXiv:2311.07911) and IFBench (Pyatkin 2025, arXiv:2507.02833): does an answer do what it was told, checked by rules.

The rules are those of the package if-verifiable; the questions come from SUITE_DIR/ifeval.jsonl and ifbench.jsonl, in the benchmarks' form.
"""

import contextlib
import importlib
import io
import json
from pathlib import Path
from typing import Any

from luthier.engine import Engine
from luthier.errors import ConfigError
from luthier.evaluate import asking
from luthier.evaluate.asking import Decoding
from luthier.evaluate.kept import Kept
from luthier.evaluate.sums import Counted, of_scores
from luthier.records import Conversation, Source, Turn
from luthier.reporting import Reporter

SUITES = ("ifeval", "ifbench")
# As long as the benchmarks let an answer be.
MAX_NEW_TOKENS = 1280
NO_TABLES = "their rules need tables of NLTK (python -m nltk.downloader punkt punkt_tab averaged_perceptron_tagger_eng stopwords)"


def read(suite: str, folder: Path | None) -> list[dict[str, Any]]:
    """The questions of a suite. Raises ConfigError where its file or the rules are not there."""
    where = f"--suite {suite}"
    if folder is None or not (path := folder / f"{suite}.jsonl").is_file():
        raise ConfigError(f"needs {suite}.jsonl in a --suite-dir", where=where, next_step="scripts/fetch_suites.py FOLDER, then --suite-dir FOLDER")
    _rules(suite)
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def run(
    engine: Engine, name: str, identity: str, suite: str, folder: Path | None, limit: int | None, kept: Kept, reporter: Reporter
) -> dict[str, Counted]:
    """The share of answers that follow all of their instructions, and of instructions that are followed (strict, and loose: without a first
    or last line, or asterisks)."""
    every = read(suite, folder)[:limit]
    questions = [question for question in every if _can_be_checked(suite, question)]
    if len(questions) < len(every):
        reporter.say(f"{suite}: {len(every) - len(questions)} of {len(every)} questions are not asked: {NO_TABLES}")
    if not questions:
        raise ConfigError(f"no question can be checked: {NO_TABLES}", where=f"--suite {suite}", next_step="fetch these tables, or ask more rows")
    rows = [
        Conversation((Turn("user", one["prompt"]), Turn("assistant", "")), Source(f"{suite}.jsonl", place)) for place, one in enumerate(questions, 1)
    ]
    column = asking.ask(engine, f"{name}, {suite}", identity, rows, [], Decoding(MAX_NEW_TOKENS), kept, reporter)
    scores = [follows(suite, question, answer) for question, answer in zip(questions, column.texts, strict=True)]
    by_name = {metric: [one[metric] for one in scores] for metric in scores[0]}
    return {f"{suite} {metric}": of_scores(values, "share" if metric.startswith("all") else "mean") for metric, values in by_name.items()}


def follows(suite: str, question: dict[str, Any], answer: str) -> dict[str, float]:
    """How an answer does what a question of the suite asks for."""
    # It tells languages by drawing at random: without a seed the same answer is scored otherwise each time.
    importlib.import_module("langdetect").DetectorFactory.seed = 0
    with contextlib.redirect_stdout(io.StringIO()):
        checked: Any = importlib.import_module("if_verifiable.common").evaluate_instructions(
            response=answer,
            instruction_id_list=question["instruction_id_list"],
            kwargs_list=question["kwargs"],
            prompt=question["prompt"],
            instruction_registry=_rules(suite),
        )
    _, found = checked
    return {
        "all_strict": float(found.binary_strict),
        "all_loose": float(found.binary_loose),
        "each_strict": float(found.partial_strict),
        "each_loose": float(found.partial_loose),
    }


def _can_be_checked(suite: str, question: dict[str, Any]) -> bool:
    try:
        follows(suite, question, "One sentence stands here. Another one follows it.")
    except LookupError:
        return False
    return True


def _rules(suite: str) -> Any:
    try:
        # What it cannot fetch, NLTK complains of at length; whoever needs it is told above.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return importlib.import_module(f"if_verifiable.{suite}.instructions_registry").INSTRUCTION_DICT
    except ImportError as error:
        raise ConfigError("if-verifiable is not installed", where=f"--suite {suite}", next_step='pip install "luthier[eval]"') from error
