"""lm-eval's tasks on our engine, through its Python API: it makes the prompts and counts, the engine reads and answers.

Its own switches stay as they are: no chat template, as many examples as a task says. What it asks for is read in batches that share their
beginnings, and kept as it comes.
"""

import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from luthier.engine import Engine
from luthier.engine.sampling import Sampling
from luthier.errors import CallError, ConfigError, LuthierError
from luthier.evaluate.kept import Kept, key_of
from luthier.evaluate.sums import Counted, Numbers, of_scores
from luthier.records import Answer, Source, TokenizedExample
from luthier.reporting import Reporter

# Continuations that are read, and then kept, together.
READ_AT_ONCE = 256
# The longest answer where a task does not say, and the context where a model does not: lm-eval's own defaults.
MAX_NEW_TOKENS, CONTEXT = 256, 2048
SEED = 1234


def check(names: Sequence[str], folder: Path | None) -> None:
    """Raises ConfigError where lm-eval knows no such task."""
    known = _tasks(folder)
    for name in names:
        if not known.match_tasks([name]):
            where = f"--suite {name}"
            raise ConfigError("lm-eval has no such task", where=where, next_step="lm_eval ls tasks lists them; --suite-dir FOLDER adds your own")


def _tasks(folder: Path | None) -> Any:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return TaskManager(include_path=None if folder is None else str(folder))


def run(
    engine: Engine,
    name: str,
    identity: str,
    names: Sequence[str],
    folder: Path | None,
    limit: int | None,
    kept: Kept,
    run_code: bool,
    reporter: Reporter,
) -> dict[str, Counted]:
    """What a model scores in lm-eval's tasks, by "task metric" (and "(filter)", where a task has several).

    Tasks that run what a model wrote are run with `run_code` only. Raises LuthierError where lm-eval cannot run a task.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    manager = _tasks(folder)
    model = OnEngine(engine, name, identity, kept, reporter)
    try:
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=list(names),
            limit=limit,
            task_manager=manager,
            bootstrap_iters=0,
            log_samples=True,
            confirm_run_unsafe_code=run_code,
            verbosity="ERROR",
        )
    except LuthierError:
        raise
    except Exception as error:  # tasks fetch data, import code and read what they fetched
        if "confirm_run_unsafe_code" in str(error):
            problem = "it runs what the model writes, and a task of lm-eval's own does so outside of the sandbox"
            next_step = "--run-code in a container, or the humaneval of scripts/fetch_suites.py, which is run in the sandbox"
            raise CallError(problem, where=f"--suite {' '.join(names)}", next_step=next_step) from error
        problem = f"lm-eval failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        next_step = "tasks that fetch their rows need the hub; --suite-dir FOLDER holds rows of your own (docs/evaluating.md)"
        raise LuthierError(problem, where=f"--suite {' '.join(names)}", next_step=next_step) from error
    return _counted(found)


def _counted(found: dict[str, Any]) -> dict[str, Counted]:
    counted: dict[str, Counted] = {}
    for task, rows in found["samples"].items():
        metrics = [name for name in found["results"][task] if "," in name and "_stderr" not in name]
        filters = {name.partition(",")[2] for name in metrics}
        for key in metrics:
            metric, _, chosen = key.partition(",")
            title = f"{task} {metric}" + (f" ({chosen})" if len(filters) > 1 else "")
            one = _of_rows([row.get(metric) for row in rows if row["filter"] == chosen], float(found["results"][task][key]))
            counted[title] = replace(one, less_is_better=found["higher_is_better"].get(task, {}).get(metric) is False)
    return counted


def _of_rows(values: list[Any], whole: float) -> Counted:
    """A task's metric as a mean over its rows, or of sums of (log-probability, words or bytes); any other has its value and no interval."""
    if values and all(isinstance(value, int | float) for value in values) and abs(sum(values) / len(values) - whole) < 1e-6:
        return of_scores([float(value) for value in values], "mean" if all(0 <= value <= 1 for value in values) else "number")
    if values and all(isinstance(value, tuple | list) and len(value) == 2 for value in values):
        sums = np.asarray(values, dtype=np.float64)
        for value_of in (_weighted_perplexity, _bits_per_byte):
            if math.isclose(value_of(sums.sum(axis=0)), whole, rel_tol=1e-6):
                return Counted(sums, value_of)
    counted = of_scores([0.0] * max(1, len(values)), "sum")
    return Counted(counted.rows, lambda sums: whole)


def _weighted_perplexity(sums: Numbers) -> float:
    return math.exp(min(700.0, -sums[0] / sums[1]))


def _bits_per_byte(sums: Numbers) -> float:
    return float(-sums[0] / sums[1] / math.log(2))


class OnEngine(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """A model as lm-eval asks it, on our engine."""

    def __init__(self, engine: Engine, name: str, identity: str, kept: Kept, reporter: Reporter) -> None:
        super().__init__()
        self.engine, self.tokenizer, self.name = engine, engine.tokenizer, name
        self._identity, self._kept, self._reporter = identity, kept, reporter

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text of which everything counts."""
        first = self.tokenizer.bos_token_id
        return int(self.tokenizer.eos_token_id if first is None else first)

    @property
    def max_length(self) -> int:
        return self.engine.context or CONTEXT

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **named: Any) -> list[int]:
        """A text as tokens, with what the tokenizer itself puts before it, unless that is there already or is not wanted."""
        first = self.tokenizer.decode(self.prefix_token_id)
        special = not string.startswith(first) if add_special_tokens is None else add_special_tokens
        ids: list[int] = self.tokenizer.encode(string, add_special_tokens=special)
        return ids

    def _loglikelihood_tokens(self, requests: list[Any], **named: Any) -> list[tuple[float, bool]]:
        rows = [self._row(context, continuation) for _, context, continuation in requests]
        keys = [key_of(self._identity, row.token_ids, {"continuation_tokens": row.trained_tokens}) for row in rows]
        missing = [place for place, key in enumerate(keys) if self._kept.answer(key) is None]
        with self._reporter.bar(f"reading with {self.name}", len(missing)) as bar:
            for start in range(0, len(missing), READ_AT_ONCE):
                places = missing[start : start + READ_AT_ONCE]
                self._kept.begin()
                for place, one in zip(places, self.engine.likelihoods([rows[place] for place in places]), strict=True):
                    read = json.dumps([one.log_probability, one.right == one.tokens])
                    self._kept.add(keys[place], Answer(read, 0, True), model=self.name, row=f"continuation {place}", sample=0)
                bar.advance(start + len(places))
        return [tuple(json.loads(_text(self._kept, key))) for key in keys]

    def _row(self, context: list[int], continuation: list[int]) -> TokenizedExample:
        """Context and continuation as a row whose continuation counts; where both are too long the beginning is left out."""
        ids = [*context, *continuation][-self.max_length :]
        counted = min(len(continuation), len(ids) - 1)
        return TokenizedExample(ids, [False] * (len(ids) - counted) + [True] * counted, Source("lm-eval", 1))

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of whole texts, in windows of the model's context, each token read once with as much before it as there is."""
        found = []
        for request in requests:
            (text,) = request.args
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length - 1, 1)
            pairs = [make_disjoint_window(window) for window in windows]
            found.append(sum(value for value, _ in self._loglikelihood_tokens([(None, *pair) for pair in pairs])))
        return found

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers up to the texts that a task ends them with."""
        asked = [(*self._asked(*request.args), number) for number, request in enumerate(requests)]
        answers = [""] * len(asked)
        for how in sorted({json.dumps(one[1], sort_keys=True) for one in asked}):
            same = [(ids, number) for ids, settings, number in asked if json.dumps(settings, sort_keys=True) == how]
            for (_, number), text in zip(same, self._answers([ids for ids, _ in same], json.loads(how)), strict=True):
                answers[number] = text
        return answers

    def _asked(self, context: str, settings: dict[str, Any]) -> tuple[list[int], dict[str, Any]]:
        longest = int(settings.get("max_gen_toks") or settings.get("max_new_tokens") or MAX_NEW_TOKENS)
        until = settings.get("until") or []
        drawn = {name: settings[name] for name in ("temperature", "top_p", "top_k") if settings.get("do_sample") and name in settings}
        how = {"max_new_tokens": longest, "until": [until] if isinstance(until, str) else until, "drawn": drawn}
        return self.tok_encode(context)[-(self.max_length - longest) :], how

    def _answers(self, prompts: list[list[int]], how: dict[str, Any]) -> list[str]:
        keys = [key_of(self._identity, ids, how) for ids in prompts]
        missing = [place for place, key in enumerate(keys) if self._kept.answer(key) is None]

        def keep(index: int, answer: Answer) -> None:
            place = missing[index]
            self._kept.add(keys[place], answer, prompt_tokens=len(prompts[place]), model=self.name, row=f"question {place}", sample=0)

        if missing:
            with self._reporter.bar(f"asking {self.name}", len(missing)) as bar:
                self._kept.begin()
                self.engine.answers(
                    [prompts[place] for place in missing],
                    max_new_tokens=how["max_new_tokens"],
                    sampling=Sampling(**how["drawn"], seed=SEED) if how["drawn"] else Sampling(),
                    stop=tuple(text for text in how["until"] if text),
                    on_answers=bar.advance,
                    on_answer=keep,
                )
        return [_text(self._kept, key) for key in keys]


def _text(kept: Kept, key: str) -> str:
    answer = kept.answer(key)
    assert answer is not None
    return answer.text
