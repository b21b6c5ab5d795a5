"""Several ranks train what one process trains: the same rows, the same draws, loss, gradients and weights to the rounding of fp32.

The ranks are real processes with a group of their own (gloo). What one process gives is made in the same way, with one rank.
"""

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest_runs import MACHINE, TOWNS, chat_row, write_rows
from forked_ranks import run_jobs
from safetensors.torch import load_file

from luthier.plan.machine import store_machine
from luthier.run_folder import RunFolder, list_runs

UPDATES = 4
LORA = ("lora.r=4", "lora.lora_alpha=8")
# Each answer is of another length, and the rows share a system message that is worth being computed once.
LONG_SYSTEM = " ".join(["Answer with the town's JSON: street, city, state and zip, nothing else, as it was carried across the street."] * 3)
SETTINGS = [
    *("training.precision=fp32", "training.learning_rate=1e-2", f"training.max_steps={UPDATES}", "training.rows_file=true"),
    *("training.save_steps=1", "training.save_total_limit=9", "evaluation.sample_answers=0", "training.batch_size=9"),
]
# Held-out rows, answers and the best checkpoint.
MEASURING = [
    *("data.eval=held.jsonl", "evaluation.every_steps=2", "evaluation.sample_answers=2", "evaluation.max_new_tokens=4"),
    *("training.load_best_model_at_end=true", "training.save_best=true"),
]
# Loss and gradient norm of an update; weights after some updates, which AdamW moves by more than its gradients differ.
SAME, SAME_WEIGHTS = 1e-5, 1e-4


def uneven_row(place: int, system: str = LONG_SYSTEM) -> dict[str, Any]:
    row = chat_row(place, system)
    row["messages"][-1]["content"] = "; ".join([row["messages"][-1]["content"]] * (1 + place % 4))
    return row


def judged_row(place: int) -> dict[str, Any]:
    row = uneven_row(place, "")
    return {"prompt": row["messages"][0]["content"], "chosen": row["messages"][1]["content"], "rejected": f"{TOWNS[place % 3]} it is"}


@dataclass(frozen=True, slots=True)
class Project:
    """Rows and settings; each case has an output folder of its own, named by it."""

    folder: Path
    home: Path

    def case(self, name: str, *overrides: str, stop_at: int = 0) -> dict[str, Any]:
        given = [*SETTINGS, *overrides, f"output_dir={self.folder / name}"]
        return {"config": str(self.folder / "luthier.yaml"), "overrides": given, "stop_at": stop_at}

    def run(self, *jobs: dict[str, Any]) -> None:
        run_jobs(self.folder, self.home, list(jobs))

    def of(self, name: str) -> RunFolder:
        (run,) = list_runs(self.folder / name)
        return run


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    folder = tmp_path_factory.mktemp("ranks")
    store_machine(folder / "home", MACHINE)
    write_rows(folder / "train.jsonl", [uneven_row(place) for place in range(22)])
    (folder / "luthier.yaml").write_text(f"model: {tiny_model}\ndata: {{train: train.jsonl, eval: null}}\ndevice: cpu\n", encoding="utf-8")
    write_rows(folder / "held.jsonl", [uneven_row(place) for place in range(100, 106)])
    labeled = [{"prompt": row["prompt"], "completion": row["chosen"], "label": place % 3 > 0} for place, row in enumerate(map(judged_row, range(22)))]
    write_rows(folder / "labeled.jsonl", labeled)
    write_rows(folder / "pairs.jsonl", [judged_row(place) for place in range(22)])
    return Project(folder, folder / "home")


def weights_of(run: RunFolder) -> dict[str, Any]:
    return {name: tensor for path in sorted(run.trained.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def require_same(one: RunFolder, other: RunFolder, tolerance: float = SAME) -> None:
    """The same updates of the same rows, with the same numbers up to rounding; and the same weights at the end."""
    first, second = one.read_metrics("train"), other.read_metrics("train")
    assert len(first) == len(second) > 0
    for name in ("step", "epoch", "logical_tokens", "trained_tokens", "learning_rate"):
        assert [row[name] for row in first] == [row[name] for row in second], name
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in second] == pytest.approx([row[name] for row in first], rel=tolerance), name
    if "metrics" in first[0]:
        assert [row["metrics"] for row in second] == [pytest.approx(row["metrics"], rel=1e-3, abs=1e-4) for row in first]
    rows = [list(run.read_row_losses()) for run in (one, other)]
    assert [(row["source"].split("/")[-1], row["step"]) for row in rows[0]] == [(row["source"].split("/")[-1], row["step"]) for row in rows[1]]
    assert [row["loss"] for row in rows[1]] == pytest.approx([row["loss"] for row in rows[0]], rel=1e-3, abs=1e-4)
    weights = [weights_of(run) for run in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    assert max(float((weights[0][name].float() - weights[1][name].float()).abs().max()) for name in weights[0]) < 10 * SAME_WEIGHTS


def require_same_measurements(one: RunFolder, other: RunFolder) -> None:
    losses = [[row["loss"] for row in run.read_metrics("eval")] for run in (one, other)]
    assert len(losses[0]) == 2
    assert losses[1] == pytest.approx(losses[0], rel=SAME)
    assert one.best.read_text()[:12] == other.best.read_text()[:12]


@pytest.fixture(scope="module")
def trained(project: Project) -> Callable[[str], RunFolder]:
    """Runs of one rank and of two, by name."""
    two = ("devices=2", "wrapping=ddp", *LORA)
    project.run(
        {"ranks": 1, "cases": [project.case("one", *LORA), project.case("one, dropping", "lora.lora_dropout=0.2", *LORA)]},
        {
            "ranks": 2,
            "cases": [
                project.case("ddp", *two),
                project.case("ddp, dropping", "lora.lora_dropout=0.2", *two),
                project.case("sharing tokens", *two, "sequence_parallel=2"),
                project.case("sharing tokens, dropping", *two, "sequence_parallel=2", "lora.lora_dropout=0.2"),
                project.case("fsdp", "devices=2", "wrapping=fsdp", *LORA),
                project.case("tp", "devices=2", "wrapping=tp", *LORA),
            ],
        },
    )
    return project.of


def test_two_ranks_train_what_one_process_trains(trained: Callable[[str], RunFolder]) -> None:
    require_same(trained("one"), trained("ddp"))
    assert "in 1 levels, which save" in trained("ddp").log.read_text(), "the rows shared nothing: the comparison would show less"


def test_dropout_is_drawn_for_the_row_and_not_for_the_rank(trained: Callable[[str], RunFolder]) -> None:
    require_same(trained("one, dropping"), trained("ddp, dropping"))
    losses = [[row["loss"] for row in trained(name).read_metrics("train")] for name in ("one", "one, dropping")]
    assert losses[0] != pytest.approx(losses[1], rel=1e-3), "nothing was dropped: the comparison would show nothing"


def test_ranks_that_share_the_tokens_train_what_one_process_trains(trained: Callable[[str], RunFolder]) -> None:
    require_same(trained("one"), trained("sharing tokens"))
    require_same(trained("one, dropping"), trained("sharing tokens, dropping"))
    assert "2 ranks train together (ddp, 2 share each micro-batch)" in trained("sharing tokens").log.read_text()


def test_ranks_that_share_the_weights_train_what_one_process_trains(trained: Callable[[str], RunFolder]) -> None:
    require_same(trained("one"), trained("fsdp"))


def test_ranks_that_compute_a_part_of_every_layer_train_what_one_process_trains(trained: Callable[[str], RunFolder]) -> None:
    require_same(trained("one"), trained("tp"))


def test_an_update_sends_the_adapters_gradients_and_little_else(trained: Callable[[str], RunFolder]) -> None:
    sent = json.loads((trained("ddp").path / "sent.json").read_text())
    adapter_bytes = sum(tensor.nbytes for tensor in weights_of(trained("ddp")).values())
    assert len(sent) == UPDATES
    for update in (after - before for before, after in itertools.pairwise(sent)):
        assert adapter_bytes <= update <= adapter_bytes + 1000, "gradients of what is not trained, or a second all-reduce"


def test_ranks_that_share_the_weights_write_a_file_each(trained: Callable[[str], RunFolder]) -> None:
    (path,) = (trained("fsdp").checkpoints / "step-000002",)
    parts = [load_file(path / f"trained-{rank:05d}-of-00002.safetensors") for rank in (1, 2)]
    whole = load_file(trained("ddp").checkpoints / "step-000002" / "trained.safetensors")
    assert all("@" in name for part in parts for name in part)
    assert sum(tensor.numel() for part in parts for tensor in part.values()) == sum(tensor.numel() for tensor in whole.values())
    assert all(part for part in parts)
    assert not list(path.glob("*.bin")) + list(path.glob("*.pt")) + list(path.glob(".metadata")), "a pickle"


# One start for all of them: what is compared with what.
MATRIX: dict[str, tuple[str, ...]] = {
    # name              settings
    "full":             ("method=full", "training.learning_rate=1e-3"),
    "dora":             ("method=dora", *LORA),
    "bf16":             ("training.precision=bf16", *LORA),
    "full, bf16":       ("method=full", "training.precision=bf16", "training.learning_rate=1e-3"),
    "cut small":        ("training.micro_batch_tokens=64", *LORA),
    "checkpointing":    ("training.gradient_checkpointing=full", "training.micro_batch_tokens=200", *LORA),
    "few rows":         ("training.batch_size=1", *LORA),
    "dpo":              ("objective=dpo", "data.train=pairs.jsonl", "training.learning_rate=1e-3", *LORA),
    "orpo":             ("objective=orpo", "data.train=pairs.jsonl", "training.learning_rate=1e-3", *LORA),
    "kto":              ("objective=kto", "data.train=labeled.jsonl", "training.learning_rate=1e-3", *LORA),
    "qlora":            ("method=qlora", "training.optim=adamw", *LORA),
    "plain":            ("training.attn_implementation=eager", *LORA),
}  # fmt: skip
# What rounds to 8 bits of a number differs by more, and after some updates by more still.
ROUNDED = {"bf16": 3e-2, "full, bf16": 3e-2}


@pytest.mark.slow
def test_every_kind_of_run_is_the_same_on_two_ranks(project: Project) -> None:
    kinds = {"ddp": ("devices=2", "wrapping=ddp"), "fsdp": ("devices=2", "wrapping=fsdp")}
    project.run(
        {"ranks": 1, "cases": [project.case(f"one, {name}", *given) for name, given in MATRIX.items()]},
        {"ranks": 2, "cases": [project.case(f"{kind}, {name}", *given, *how) for kind, how in kinds.items() for name, given in MATRIX.items()]},
    )
    differing = {}
    for kind in kinds:
        for name in MATRIX:
            try:
                if name in ROUNDED:
                    losses = [[row["loss"] for row in project.of(f"{who}, {name}").read_metrics("train")] for who in ("one", kind)]
                    assert losses[1] == pytest.approx(losses[0], rel=ROUNDED[name])
                else:
                    require_same(project.of(f"one, {name}"), project.of(f"{kind}, {name}"))
            except AssertionError as error:
                differing[f"{kind}, {name}"] = str(error)[:600]
    assert not differing, json.dumps(differing, indent=1)


# Of these the ranks of a team share each micro-batch.
SHARED_TOKENS: dict[str, tuple[str, ...]] = {
    # name                  settings
    "full, cut small":      ("method=full", "training.learning_rate=1e-3", "training.micro_batch_tokens=64"),
    "recomputing":          ("training.gradient_checkpointing=full", "lora.lora_dropout=0.2", *LORA),
    "few rows, noisy":      ("training.batch_size=1", "training.neftune_noise_alpha=5", *LORA),
    "fsdp":                 ("wrapping=fsdp", *LORA),
}  # fmt: skip


@pytest.mark.slow
def test_every_kind_of_run_is_the_same_where_ranks_share_the_tokens(project: Project) -> None:
    two = ("devices=2", "sequence_parallel=2")
    chain, four = ("shared chain", *LORA), ("devices=4", "sequence_parallel=2")
    alone = {name: tuple(one for one in given if one != "wrapping=fsdp") for name, given in SHARED_TOKENS.items()}
    project.run(
        {"ranks": 1, "cases": [project.case(f"whole, {name}", *given) for name, given in alone.items()]},
        {"ranks": 2, "cases": [project.case(f"shared, {name}", *given, *two) for name, given in SHARED_TOKENS.items()]},
        {"ranks": 4, "cases": [project.case(*chain, *four, stop_at=2)]},
        {"ranks": 1, "cases": [project.case(*chain)]},
    )
    for name in SHARED_TOKENS:
        require_same(project.of(f"whole, {name}"), project.of(f"shared, {name}"))
    require_same(project.of("whole, fsdp"), project.of("shared chain"))
    said = project.of("shared chain").log.read_text()
    assert "4 ranks train together (ddp, 2 share each micro-batch)" in said
    assert "sequence_parallel was 2 and is now 1 (harmless" in said


# Of these each rank computes a part of every layer.
CUT_LAYERS: dict[str, tuple[str, ...]] = {
    # name              settings
    "full":             ("method=full", "training.learning_rate=1e-3"),
    "recomputing":      ("training.gradient_checkpointing=full", *LORA),
    "measured":         (*MEASURING, *LORA),
}  # fmt: skip


@pytest.mark.slow
def test_every_kind_of_run_is_the_same_where_ranks_compute_a_part_of_every_layer(project: Project) -> None:
    two, chain = ("devices=2", "wrapping=tp"), ("cut chain", *LORA)
    project.run(
        {"ranks": 1, "cases": [project.case(f"whole layers, {name}", *given) for name, given in CUT_LAYERS.items()]},
        {"ranks": 2, "cases": [project.case(f"cut layers, {name}", *given, *two) for name, given in CUT_LAYERS.items()]},
        {"ranks": 2, "cases": [project.case(*chain, *two, stop_at=1)]},
        {"ranks": 1, "cases": [project.case(*chain, stop_at=2)]},
        {"ranks": 2, "cases": [project.case(*chain, *two, stop_at=3)]},
        {"ranks": 2, "cases": [project.case(*chain, "devices=2", "wrapping=fsdp")]},
        {"ranks": 1, "cases": [project.case("whole chain", *LORA)]},
    )
    for name in CUT_LAYERS:
        require_same(project.of(f"whole layers, {name}"), project.of(f"cut layers, {name}"))
    require_same_measurements(project.of("whole layers, measured"), project.of("cut layers, measured"))
    require_same(project.of("whole chain"), project.of("cut chain"))
    assert "wrapping was tp and is now fsdp (harmless" in project.of("cut chain").log.read_text()


@pytest.mark.slow
def test_a_run_goes_on_with_more_and_with_fewer_ranks(project: Project) -> None:
    two = ("devices=2", "wrapping=fsdp")
    project.run(
        {"ranks": 1, "cases": [project.case("straight", *LORA), project.case("chain", *LORA, stop_at=1)]},
        {"ranks": 2, "cases": [project.case("chain", *LORA, *two, stop_at=2)]},
        {"ranks": 1, "cases": [project.case("chain", *LORA, stop_at=3)]},
        {"ranks": 2, "cases": [project.case("chain", *LORA, "devices=2", "wrapping=ddp")]},
    )
    require_same(project.of("straight"), project.of("chain"))
    said = project.of("chain").log.read_text()
    assert [f"stopped by signal 15 after step {step}" in said for step in (1, 2, 3)] == [True] * 3, said


@pytest.mark.slow
def test_ranks_that_share_the_weights_measure_answer_and_save_as_one_process_does(project: Project) -> None:
    project.run(
        {"ranks": 1, "cases": [project.case("one, measured", *MEASURING, *LORA)]},
        {"ranks": 2, "cases": [project.case("fsdp, measured", *MEASURING, *LORA, "devices=2", "wrapping=fsdp")]},
    )
    require_same(project.of("one, measured"), project.of("fsdp, measured"))
    require_same_measurements(project.of("one, measured"), project.of("fsdp, measured"))


# Of these the ranks have their parts in main memory.
OFFLOADED: dict[str, tuple[str, ...]] = {
    # name              settings
    "full":             ("method=full", "training.learning_rate=1e-3"),
    "qlora":            ("method=qlora", "training.optim=adamw", *LORA),
    "measured":         (*MEASURING, *LORA),
}  # fmt: skip


@pytest.mark.slow
def test_every_kind_of_run_is_the_same_with_parts_in_main_memory(project: Project) -> None:
    """The policy is torch's own; what is a copy between GPU and host there is a copy within memory here."""
    two, chain = ("devices=2", "wrapping=fsdp", "launch.cpu_offload=true"), ("offloaded chain", *LORA)
    project.run(
        {"ranks": 1, "cases": [project.case(f"here, {name}", *given) for name, given in OFFLOADED.items()]},
        {"ranks": 2, "cases": [project.case(f"offloaded, {name}", *given, *two) for name, given in OFFLOADED.items()]},
        {"ranks": 2, "cases": [project.case(*chain, *two, stop_at=1)]},
        {"ranks": 2, "cases": [project.case(*chain, "devices=2", "wrapping=ddp", stop_at=2)]},
        {"ranks": 2, "cases": [project.case(*chain, *two, stop_at=3)]},
        {"ranks": 1, "cases": [project.case(*chain)]},
        {"ranks": 1, "cases": [project.case("chain, here", *LORA)]},
    )
    for name in OFFLOADED:
        require_same(project.of(f"here, {name}"), project.of(f"offloaded, {name}"))
    require_same_measurements(project.of("here, measured"), project.of("offloaded, measured"))
    require_same(project.of("chain, here"), project.of("offloaded chain"))


@pytest.mark.slow
def test_four_ranks_of_two_hosts_share_the_weights_by_host(project: Project) -> None:
    project.run(
        {"ranks": 1, "cases": [project.case("alone", *LORA)]},
        {"ranks": 4, "of_host": 2, "cases": [project.case("hsdp", *LORA, "devices=2", "nodes=2", "wrapping=hsdp")]},
    )
    require_same(project.of("alone"), project.of("hsdp"))
    (path,) = (project.of("hsdp").checkpoints / "step-000002",)
    assert len(list(path.glob("trained-*.safetensors"))) == 2, "each half once, and not once a host"
