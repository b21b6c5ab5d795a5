"""Luthier beside its peers on the same rows, model, adapter and update size, in one run; and how its speed scales.

    python benchmarks/engine.py                     about 25 minutes on 2 cores, after the peers were installed once
    python benchmarks/engine.py --quick             a few minutes: fewer peers and settings, smaller updates, one round
    python benchmarks/engine.py --method full       full fine-tuning on the short chats
    python benchmarks/engine.py scaling             tokens a second against micro-batch, length and rank, as JSON and as a plot

Each measurement is a process of its own. Round 1 tries every setting; the rounds after it take turns between Luthier, TRL's defaults and
the best setting of each peer, while time is left. No speed is shown for a tool whose losses are not those of the plain twin.
docs/performance.md says what each number means.
"""

import argparse
import datetime
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import engine_scaling
from engine_environments import PEERS, TORCH, Missing, python_of
from engine_sets import RowSet, chats, row_set
from engine_table import Line, Measured, Shape, bars, gate, line, start_bars, table
from engine_workers import Failed, python_for, work
from peers.protocol import Job

from luthier import files
from luthier.models import find, load
from luthier.plan.machine import processor, usable_cores
from luthier.reporting import Silent

HERE = Path(__file__).parent
Twins = dict[str, list[dict[str, Any]]]  # the plain twin's updates in each number format
MODEL = "smollm2-135m-instruct"
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
# Small: what random adapters of a tool that cannot load ours do to the loss stays far below the gate.
RATES = {"lora": 2e-4, "full": 2e-5}
ROUNDS = 5
SETTINGS = [
    # tool           setting                        precision  weights  packing  checkpointing
    ("luthier",       "bf16",                       "bf16",    "bf16",  False,   False),
    # What `compile: auto` does in a run of more than ten minutes.
    ("luthier",       "bf16, compiled",             "bf16",    "bf16",  False,   False),
    ("trl",           "bf16, packed",               "bf16",    "fp32",  True,    False),
    ("trl",           "defaults",                   "bf16",    "fp32",  False,   True),
    ("transformers",  "bf16",                       "bf16",    "fp32",  False,   False),
    ("llama_factory", "bf16",                       "bf16",    "bf16",  False,   False),
    ("ms_swift",      "bf16",                       "bf16",    "bf16",  False,   False),
    ("litgpt",        "bf16-true",                  "bf16",    "bf16",  False,   False),
    ("trl",           "bf16 and weights, packed",   "bf16",    "bf16",  True,    False),
    ("trl",           "bf16, padded",               "bf16",    "fp32",  False,   False),
    ("luthier",       "fp32",                       "fp32",    "fp32",  False,   False),
    ("transformers",  "bf16 and weights",           "bf16",    "bf16",  False,   False),
    ("trl",           "fp32, packed",               "fp32",    "fp32",  True,    False),
    ("trl",           "fp32, padded",               "fp32",    "fp32",  False,   False),
    ("transformers",  "fp32",                       "fp32",    "fp32",  False,   False),
]  # fmt: skip
QUICK = {
    ("luthier", "bf16"),
    ("trl", "bf16, packed"),
    ("trl", "defaults"),
    ("transformers", "bf16"),
    ("llama_factory", "bf16"),
    ("ms_swift", "bf16"),
    ("litgpt", "bf16-true"),
}
BATCHES = {"short": 16, "shared": 16, "long": 4}
QUICK_BATCHES = {"short": 8, "shared": 8, "long": 2}
# litgpt's full fine-tuning is another program, with another loop.
NO_FULL = {"litgpt"}


@dataclass(slots=True)
class Run:
    """Everything that one run of the benchmark knows."""

    asked: argparse.Namespace
    model: Path
    scratch: Path
    adapter: Path
    pythons: dict[str, Path | Missing]
    warm_up: int = 1
    began: float = field(default_factory=time.monotonic)
    products: list[dict[str, float]] = field(default_factory=list)

    @property
    def updates(self) -> int:
        return self.warm_up + int(self.asked.updates)

    @property
    def left_s(self) -> float:
        return float(self.asked.minutes) * 60 - (time.monotonic() - self.began)

    @property
    def gflops(self) -> dict[str, float]:
        return {name: statistics.median(one[name] for one in self.products) for name in ("bf16", "fp32")}

    def job(self, rows: Path, batch_size: int, setting: dict[str, Any]) -> Job:
        method = self.asked.method
        return Job(str(self.model), str(self.adapter), str(rows), "", batch_size, self.updates, RATES[method], method, setting, 0.0)

    def work(self, tool: str, program: str, job: Job) -> dict[str, Any]:
        return work(program, job, python_for(tool, self.pythons), self.asked.threads)

    def measure_products(self) -> None:
        self.products.append(self.work("luthier", "products", self.job(Path(), 1, {})))


def compare(run: Run) -> None:
    """Every set, every tool; the tables and the JSON are written after each round, so that an interrupted run leaves what it has."""
    tokenizer = load.load_tokenizer(run.model)
    batches = QUICK_BATCHES if run.asked.quick else BATCHES
    sets = [row_set(name, tokenizer, batches[name] * run.updates, batches[name], files.home() / "benchmarks") for name in run.asked.sets]
    for one in sets:
        one.write(run.scratch / f"{one.name}.jsonl")
    twins: dict[str, Twins] = {}
    found: dict[str, list[Measured]] = {one.name: fresh(run) for one in sets}
    starts: list[float] = []
    for number in range(1, (1 if run.asked.quick else ROUNDS) + 1):
        round_began = time.monotonic()
        run.measure_products()
        for place, one in enumerate(sets):
            if number == 1:
                twins[one.name] = {precision: twin_updates(run, one, precision) for precision in ("bf16", "fp32")}
            # In the first round no set may take the time of those after it.
            until_s = run.left_s * place_share(len(sets) - place) if number == 1 else run.left_s
            one_round(run, one, due(found[one.name], twins[one.name], number), until_s)
        if run.asked.method == "lora" and "short" in run.asked.sets:
            starts.append(start_of_luthier(run, again=number > 1))
        write(run, sets, found, twins, starts)
        if run.left_s < time.monotonic() - round_began and number > 1:
            break
    print(f"written: {run.asked.output}.md and {run.asked.output}.json")


def place_share(sets_left: int) -> float:
    """The share of the time that is left which one set of the first round may take: the rounds after it keep a quarter."""
    return 0.75 / sets_left


def fresh(run: Run) -> list[Measured]:
    """The settings to try, in the order of their weight."""
    keep = [row for row in SETTINGS if row[0] == "luthier" or row[0] in run.asked.peers]
    if run.asked.quick:
        keep = [row for row in keep if row[:2] in QUICK]
    if run.asked.method == "full":
        keep = [row for row in keep if row[0] not in NO_FULL]
    return [
        Measured(tool, name, precision, packed, peer=tool != "luthier", defaults=name == "defaults") for tool, name, precision, _, packed, _ in keep
    ]


def due(found: list[Measured], twins: Twins, number: int) -> list[Measured]:
    """Who runs in this round: everyone in the first, then each tool's fastest setting and TRL's defaults, where the losses pass."""
    if number == 1:
        return found
    ran = [one for one in found if not gate(one, twins[one.precision])]
    fastest = [max((one for one in ran if one.tool == tool), key=rate) for tool in dict.fromkeys(one.tool for one in ran)]
    return [one for one in ran if one in fastest or one.defaults]


def rate(measured: Measured) -> float:
    return statistics.median(update["logical"] / update["seconds"] for update in measured.updates(1))


def values_of(measured: Measured) -> dict[str, Any]:
    """What the worker is told of its setting."""
    [row] = [row for row in SETTINGS if row[:2] == (measured.tool, measured.setting)]
    values = dict(zip(("precision", "weights", "packing", "checkpointing"), row[2:], strict=True))
    return values | ({"compile": True} if "compiled" in measured.setting else {})


def one_round(run: Run, rows: RowSet, turn: list[Measured], until_s: float) -> None:
    began = time.monotonic()
    for measured in turn:
        if measured.failure:
            continue
        if time.monotonic() - began > until_s:
            if not measured.rounds:
                measured.failure = "not run: the time was up (--minutes)"
            continue
        job = run.job(run.scratch / f"{rows.name}.jsonl", rows.batch_size, values_of(measured))
        try:
            measured.rounds.append(run.work(measured.tool, f"with_{measured.tool}", job))
            if len(measured.rounds[-1]["updates"]) <= run.warm_up:
                measured.failure = "its packs hold all rows in one update; take more (--updates)"
        except Failed as failed:
            measured.failure = str(failed)
        said = measured.failure or f"{measured.rounds[-1]['wall_s']:.0f} s"
        print(f"{rows.name:7} {measured.tool:14} {measured.setting:26} {said}", flush=True)


def twin_updates(run: Run, rows: RowSet, precision: str) -> list[dict[str, Any]]:
    """The plain twin's loss of every update. Without it nothing can be said, so a failure ends the run."""
    try:
        answer = run.work("luthier", "with_twin", run.job(run.scratch / f"{rows.name}.jsonl", rows.batch_size, {"precision": precision}))
    except Failed as failed:
        raise SystemExit(f"{rows.name}: the plain twin: {failed}") from failed
    updates: list[dict[str, Any]] = answer["updates"]
    losses = ", ".join(f"{update['loss']:.4f}" for update in updates)
    print(f"{rows.name:7} plain twin     {precision} losses {losses}  ({answer['wall_s']:.0f} s)", flush=True)
    return updates


def start_of_luthier(run: Run, again: bool) -> float:
    """Seconds from process start to the first micro-batch of `luthier train`; everything it keeps is there, since it ran before."""
    folder = run.scratch / "start"
    settings = folder / "luthier.yaml"
    if not again:
        files.make_folder(folder)
        files.write_lines(folder / "rows.jsonl", chats(files.home() / "benchmarks"))
        training = "training:\n  max_steps: 1\n  batch_size: 16\n"
        text = f"model: {MODEL}\ndata:\n  train: rows.jsonl\n{training}evaluation:\n  sample_answers: 0\noutput_dir: runs\n"
        files.write_text(settings, text)
        run.work("luthier", "start_luthier", run.job(settings, 1, {}))
    answer = run.work("luthier", "start_luthier", run.job(settings, 1, {}))
    print(f"start   luthier train  first micro-batch after {answer['first_micro_batch_s']:.1f} s", flush=True)
    return float(answer["first_micro_batch_s"])


def write(run: Run, sets: list[RowSet], found: dict[str, list[Measured]], twins: dict[str, Twins], starts: list[float]) -> None:
    """The tables as Markdown, and everything that was measured as JSON."""
    config = json.loads((run.model / "config.json").read_text(encoding="utf-8"))
    shape, how = Shape.of(config, int(LORA["r"])), {"warm_up": run.warm_up, "method": run.asked.method, "gflops": run.gflops}
    parts, trl_starts = [head(run, sets)], []
    for rows in sets:
        updates = [rows.rows[start : start + rows.batch_size] for start in range(0, len(rows.rows), rows.batch_size)]
        lines = [line(one, twins[rows.name][one.precision], updates, shape, how) for one in found[rows.name]]
        parts += [table(rows.name, lines), "\n".join(f"- {said}" for said in bars(rows.name, lines, run.asked.method))]
        trl_starts += first_micro_batches(lines, rows.name)
    if starts:
        said = start_bars(statistics.median(starts), min(trl_starts, default=None))
        parts += ["### Start of `luthier train` (short chats)", "\n".join(f"- {one}" for one in said)]
    text = "\n\n".join(parts) + "\n"
    measured = {name: [asdict(one) for one in several] for name, several in found.items()}
    numbers = {"gflops": run.gflops, "lora": LORA, "learning_rate": RATES[run.asked.method], "twin_updates": twins, "starts_s": starts}
    files.make_folder(run.asked.output.parent)
    files.write_text(run.asked.output.with_suffix(".md"), text)
    files.write_json(run.asked.output.with_suffix(".json"), {"head": parts[0], **numbers, "measured": measured})
    print(f"\n{text}", flush=True)


def first_micro_batches(lines: Sequence[Line], name: str) -> list[float]:
    return [one.measured.median("first_micro_batch_s") for one in lines if one.measured.tool == "trl" and one.measured.rounds and name == "short"]


def device(run: Run) -> str:
    return f"{run.asked.threads} threads of {processor()[0]} ({usable_cores()} cores)"


def head(run: Run, sets: list[RowSet]) -> str:
    lengths = {one.name: [len(row.token_ids) for row in one.rows] for one in sets}
    trained = {one.name: sum(row.trained_tokens for row in one.rows) / sum(lengths[one.name]) for one in sets}
    shown = [
        f"{one.name}: {one.batch_size} rows an update, {statistics.mean(lengths[one.name]):.0f} tokens on average "
        f"({min(lengths[one.name])} to {max(lengths[one.name])}), {trained[one.name]:.0%} trained"
        for one in sets
    ]
    rates = ", ".join(f"{name} {value:,.0f} GFLOP/s" for name, value in run.gflops.items())
    how = f"LoRA r={LORA['r']}, alpha {LORA['lora_alpha']}, all linear layers" if run.asked.method == "lora" else "full fine-tuning"
    lines = [
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {device(run)}; matrix products {rates}",
        f"{MODEL}, {how}, {run.warm_up} update before and {run.asked.updates} timed in each of {len(run.products)} rounds; medians",
        *shown,
    ]
    return "\n".join(f"- {one}" for one in lines)


def scale(run: Run) -> None:
    """Tokens a second along three axes, with Luthier alone; the plot goes to --plot."""
    texts = row_set("long", load.load_tokenizer(run.model), 120, 1, files.home() / "benchmarks")
    ids = [token for row in texts.rows for token in row.token_ids]
    config = json.loads((run.model / "config.json").read_text(encoding="utf-8"))

    def measure(point: engine_scaling.Point, rows: list[Any], batch: int) -> dict[str, Any]:
        path = run.scratch / "rows.jsonl"
        RowSet("scaling", batch, rows).write(path)
        adapter = make_adapter(run, {**LORA, "r": point.rank, "lora_alpha": 2 * point.rank})
        job = Job(str(run.model), str(adapter), str(path), "", batch, len(rows) // batch, RATES["lora"], "lora", point.setting, 0.0)
        return run.work("luthier", "with_luthier", job)

    run.measure_products()
    found = []
    for point in engine_scaling.points(run.asked.quick, run.asked.precision):
        found.append(engine_scaling.measure(point, ids, measure, config))
        print(f"{point.axis:20} {point.value:6}  {found[-1]['tokens_per_second']:,.0f} tok/s", flush=True)
    run.measure_products()
    files.make_folder(run.asked.output.parent)
    files.write_json(run.asked.output.with_suffix(".json"), {"device": device(run), "gflops": run.gflops, "points": found})
    engine_scaling.plot(found, run.gflops[run.asked.precision], f"SmolLM2-135M, LoRA, {run.asked.precision}: {device(run)}", run.asked.plot)
    print(f"written: {run.asked.output}.json and {run.asked.plot}")


def make_adapter(run: Run, lora: dict[str, Any]) -> Path:
    """A fresh adapter in PEFT's format, so that every tool begins with the same numbers."""
    from luthier.engine import Engine

    folder = run.scratch / f"adapter-r{lora['r']}"
    return folder if folder.is_dir() else Engine.open(str(run.model), lora=lora).save_state(folder)


def asked_for() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("compare", "scaling"), default="compare")
    parser.add_argument("--quick", action="store_true", help="a few minutes")
    parser.add_argument("--method", choices=tuple(RATES), default="lora")
    parser.add_argument("--sets", nargs="+", choices=tuple(BATCHES), help="default: all; with --method full the short chats")
    parser.add_argument("--peers", nargs="*", choices=tuple(PEERS), help="default: all; with --quick trl and transformers")
    parser.add_argument("--updates", type=int, help="timed updates of each process (default 3, with --quick 1)")
    parser.add_argument("--minutes", type=float, default=25, help="no round begins that would end later (default 25)")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="threads of every tool (default: all cores)")
    parser.add_argument("--envs", type=Path, default=Path.home() / ".cache" / "luthier-benchmark", help="where the peers' environments are kept")
    parser.add_argument("--torch", default=TORCH, help=f"what pip installs first into each of them (default {TORCH})")
    parser.add_argument("--python", action="append", default=[], metavar="TOOL=PATH", help="use this Python for a peer instead")
    parser.add_argument("--output", type=Path, help="written as .md and .json (default benchmarks/results/WHAT)")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp32"), help="of `scaling`")
    parser.add_argument("--plot", type=Path, default=HERE.parent / "docs" / "performance-scaling.svg", help="where `scaling` draws (.svg or .png)")
    asked = parser.parse_args()
    asked.sets = asked.sets or (["short"] if asked.method == "full" else list(BATCHES))
    asked.peers = asked.peers if asked.peers is not None else ["trl", "transformers"] if asked.quick else list(PEERS)
    asked.updates = asked.updates or (1 if asked.quick else 3)
    name = asked.what if asked.method == "lora" else f"{asked.what}-{asked.method}"
    asked.output = asked.output or HERE / "results" / name
    return asked


def main() -> None:
    asked = asked_for()
    model = find.find(MODEL, Silent())
    given = {name: Path(path) for name, _, path in (one.partition("=") for one in asked.python)}
    peers = asked.peers if asked.what == "compare" else []
    pythons: dict[str, Path | Missing] = {tool: given.get(tool) or python_of(tool, asked.envs, asked.torch) for tool in peers}
    with tempfile.TemporaryDirectory(prefix="luthier-benchmark-") as scratch:
        run = Run(asked, model, Path(scratch), Path(), pythons)
        if asked.method == "lora":
            run.adapter = make_adapter(run, LORA)
        (scale if asked.what == "scaling" else compare)(run)


if __name__ == "__main__":
    sys.exit(main())
