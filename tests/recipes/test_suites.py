"""Benchmarks on our engine: what lm-eval's own command line finds with the same tasks, answer by answer."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest_runs import Listener, write_rows

from luthier.engine import opening
from luthier.errors import CallError, ConfigError
from luthier.evaluate import instructions, suites
from luthier.evaluate.kept import Kept
from luthier.recipes import evaluation
from luthier.recipes.evaluation import Call
from luthier.reporting import Silent
from luthier.run_folder import RunFolder

WORDS = ["guitar", "street", "luthier", "answers", "jumps", "nothing", "boxing", "address"]


def task(folder: Path, name: str, rows: list[dict[str, Any]], **settings: Any) -> None:
    files = {"test": str(write_rows(folder / f"{name}.jsonl", rows)), "dev": str(write_rows(folder / f"{name}.dev.jsonl", rows[:2]))}
    whole = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test", "fewshot_split": "dev", **settings}
    text = json.dumps(whole, indent=1).replace('"!function code.process_results"', "!function code.process_results")
    (folder / f"{name}.yaml").write_text(text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One task of each kind, in the form that scripts/fetch_suites.py writes."""
    folder = tmp_path / "suites"
    folder.mkdir()
    choices = [
        {"q": f"The {word} was carried", "choices": [f"{word} to the street", "away", "and lost"], "gold": n % 3} for n, word in enumerate(WORDS)
    ]
    accuracy = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
    first = {"fewshot_config": {"sampler": "first_n"}}
    choose = {"output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_target": "gold", "doc_to_choice": "choices"}
    task(folder, "chosen", choices, **choose, metric_list=accuracy, num_fewshot=2, **first)
    rows = [{"q": f"How many {word}s are {n} and {n}?", "a": str(2 * n)} for n, word in enumerate(WORDS)]
    exact = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    until = {"until": ["\n", "street"], "max_gen_toks": 24, "do_sample": False}
    say = {"output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}", "generation_kwargs": until}
    task(folder, "said", rows, **say, metric_list=exact, **first)
    texts = [{"text": f"The {word} was carried across the street, and nothing was lost. " * (1 + 12 * (n == 3))} for n, word in enumerate(WORDS)]
    perplexity = [{"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}]
    task(folder, "read", texts, output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{text}}", metric_list=perplexity)
    (folder / "code.py").write_text('def process_results(doc, results):\n    return {"pass@1": float("street" in results[0])}\n')
    passing = [{"metric": "pass@1", "aggregation": "mean", "higher_is_better": True}]
    task(folder, "coded", rows, **say, metric_list=passing, process_results="!function code.process_results", unsafe_code=True)
    return folder


@pytest.mark.slow
def test_the_tasks_find_what_lm_evals_own_command_line_finds(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    names = ["chosen", "said", "read", "coded"]
    arguments = ["run", "--model", "hf", "--model_args", f"pretrained={tiny_model},dtype=float32", "--tasks", *names, "--include_path", str(folder)]
    arguments += ["--device", "cpu", "--batch_size", "4", "--log_samples", "--output_path", str(tmp_path / "theirs"), "--confirm_run_unsafe_code"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "TOKENIZERS_PARALLELISM": "false"}
    ran = subprocess.run([sys.executable, "-m", "lm_eval", *arguments], env=os.environ | offline, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    (results,) = (tmp_path / "theirs").rglob("results_*.json")
    theirs = json.loads(results.read_text())["results"]

    engine = opening.open_model(str(tiny_model), Silent(), "fp32", "cpu")
    kept = Kept(tmp_path / "answers.jsonl")
    found = suites.run(engine, "tiny", "tiny", names, str(folder), None, kept, True, Silent())
    assert {name: counted.value for name, counted in found.items()} == {
        f"{name} {key.partition(',')[0]}": pytest.approx(value, rel=1e-4)
        for name in names
        for key, value in theirs[name].items()
        if "," in key and "stderr" not in key
    }
    assert found["chosen acc"].metric().n == len(WORDS)
    said = [json.loads(line) for path in (tmp_path / "theirs").rglob("samples_said_*.jsonl") for line in path.read_text().splitlines()]
    ours = {
        entry["answer"] for entry in map(json.loads, (tmp_path / "answers.jsonl").read_text().splitlines()) if entry["row"].startswith("question")
    }
    assert {row["resps"][0][0] for row in said} <= ours

    lines = len(kept)
    assert (
        suites.run(engine, "tiny", "tiny", names, str(folder), None, kept, True, Silent())["said exact_match"].value
        == found["said exact_match"].value
    )
    assert len(kept) == lines, "nothing was asked again"


@pytest.mark.slow
def test_a_suite_stands_in_the_scorecard_of_base_and_tuned(copied: RunFolder, folder: Path) -> None:
    pytest.importorskip("lm_eval")
    found = evaluation.compare([str(copied.path)], Call(suites=("chosen", "said"), suite_dir=str(folder), max_rows=4), Listener())
    assert list(found.scorecard.models) == ["base", "tuned"]
    assert list(found.scorecard.models["tuned"]) == ["chosen acc", "chosen acc_norm", "said exact_match"]
    assert found.scorecard.differences["tuned"]["chosen acc"].n == 4
    assert found.folder == copied.evals / "chosen-said"
    read = evaluation.compare([str(copied.path)], Call(suites=("read",), suite_dir=str(folder), max_rows=4)).scorecard
    assert read.data["lower_is_better"] == ["read word_perplexity"]
    perplexity = read.models["tuned"]["read word_perplexity"]
    assert perplexity.low < perplexity.value < perplexity.high
    with pytest.raises(CallError, match="--run-code"):
        evaluation.compare([str(copied.path)], Call(suites=("coded",), suite_dir=str(folder)))
    with pytest.raises(ConfigError, match="lm-eval has no such task"):
        evaluation.compare([str(copied.path)], Call(suites=("no_such_task",), suite_dir=str(folder)))


def test_instructions_are_checked_by_their_rules(tmp_path: Path, copied: RunFolder) -> None:
    pytest.importorskip("if_verifiable")
    question = {"prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma", "change_case:english_lowercase"], "kwargs": [{}, {}]}
    assert instructions.follows("ifeval", question, "this is a small answer, and it has a comma in it")["each_strict"] == 0.5
    doubtful = [instructions.follows("ifeval", question, "all small, and a comma") for _ in range(40)]  # English or Italian: who knows
    assert all(one == doubtful[0] for one in doubtful)
    assert instructions.follows("ifeval", question, "all small and no more of it")["all_strict"] == 1
    write_rows(tmp_path / "ifeval.jsonl", [question])
    found = evaluation.compare([str(copied.path)], Call(suites=("ifeval",), suite_dir=str(tmp_path)))
    assert list(found.scorecard.models["base"]) == ["ifeval all_strict", "ifeval all_loose", "ifeval each_strict", "ifeval each_loose"]


def test_a_suite_without_its_folder_says_how_to_get_it(tmp_path: Path) -> None:
    for suite_dir, said in ((None, "needs ifbench.jsonl in a --suite-dir"), (str(tmp_path / "none"), "no such folder")):
        with pytest.raises(ConfigError, match=said):
            suites.check(["ifbench"], suite_dir)
