"""What a run of given settings costs: parts of the peak, micro-batches side by side, evaluation, devices, and what fits where."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from luthier.config.settings import Settings
from luthier.errors import ConfigError
from luthier.models.facts import ModelFacts
from luthier.plan import cost, counts, elsewhere, levers, memory
from luthier.plan.cost import DataShape
from luthier.records import Machine

ROWS = DataShape(train_rows=1000, train_tokens=120_000, trained_tokens=30_000, longest=150, shared_prefix_tokens=0, answer_p99=50)
LONG = replace(ROWS, train_tokens=800_000, longest=1000)


def settings(method: str = "lora", *, evaluation: dict[str, object] | None = None, **training: object) -> Settings:
    filled = {"precision": "bf16", "micro_batch_tokens": 2048, "batch_size": 16, "gradient_checkpointing": "off", "side_by_side": False}
    filled |= {"num_train_epochs": 1.0, **training}
    asked = {"sample_answers": 0, "max_new_tokens": 64, **(evaluation or {})}
    adapter = {} if method == "full" else {"lora": {"r": 16}}
    return Settings.model_validate(
        {"model": "m", "data": {"train": "t.jsonl", "max_length": 2048}, "method": method, "training": filled, "evaluation": asked} | adapter
    )


def test_activations_are_those_that_autograd_keeps(smollm2: ModelFacts) -> None:
    # Counted with torch.autograd.graph.saved_tensors_hooks on the default model, 128 tokens a row, LoRA of rank 16 (whose own share is 7 KB).
    kept = memory.activation_bytes_per_token(smollm2, 2) + memory.attention_bytes_per_token(smollm2, 128, 2)
    assert kept == pytest.approx(731_050, rel=0.02)
    selective = memory.activation_bytes_per_token(smollm2, 2, "selective") + memory.attention_bytes_per_token(smollm2, 128, 2)
    assert selective == pytest.approx(295_180, rel=0.06)
    assert memory.activation_bytes_per_token(smollm2, 2, "full") == pytest.approx(36_870 + 21_120, rel=0.06)  # and one block, computed again
    trained_norms = memory.activation_bytes_per_token(smollm2, 2, norms_are_trained=True) - memory.activation_bytes_per_token(smollm2, 2)
    assert trained_norms == 30 * 2 * 576 * 2


def test_two_micro_batches_at_once_are_counted_where_they_run(smollm2: ModelFacts, laptop: Machine) -> None:
    def parts(machine: Machine = laptop, rows: DataShape = ROWS, **training: object) -> dict[str, int]:
        return cost.memory_parts(settings(side_by_side=True, **training), smollm2, machine, rows)

    assert parts()["side by side"] > 0.4 * parts()["activations"]
    assert "side by side" not in cost.memory_parts(settings(), smollm2, laptop, ROWS), "training.side_by_side: false"
    assert "side by side" not in parts(replace(laptop, cores=1))
    assert "side by side" not in parts(replace(laptop, device="cuda"))
    assert "side by side" not in parts(batch_size=1)
    assert "side by side" not in parts(rows=replace(ROWS, longest=1500)), "two of them are more than the budget"
    limited = settings(side_by_side=True).model_copy(update={"max_memory": "8GB"})
    assert "side by side" not in cost.memory_parts(limited, smollm2, laptop, ROWS)
    assert "side by side" not in cost.memory_parts(settings("full", side_by_side=True), smollm2, laptop, ROWS)


def test_what_engine_and_plan_must_agree_on() -> None:
    # Read and not imported: torch would take longer than all of these tests.
    engine = Path(cost.__file__).parents[1] / "engine"
    assert f"BATCH_TOKENS = {cost.ANSWERED_TOKENS:_}\n" in (engine / "generate.py").read_text(encoding="utf-8")
    assert f"LANE_TOKENS = {cost.LEAST_SIDE_BY_SIDE_TOKENS // 2}\n" in (engine / "batches.py").read_text(encoding="utf-8")


def test_an_evaluation_is_counted_where_it_needs_more_than_an_update(smollm2: ModelFacts, laptop: Machine) -> None:
    def beyond(rows: DataShape = LONG, answers: int = 128, micro_batch_tokens: int = 256, **training: object) -> int:
        asked = settings(evaluation={"in_loop_rows": answers, "max_new_tokens": 512}, micro_batch_tokens=micro_batch_tokens, **training)
        return cost.memory_parts(asked, smollm2, laptop, rows).get("evaluation", 0)

    assert beyond(gradient_checkpointing="full") > beyond(gradient_checkpointing="full", answers=8) > 0
    assert beyond(answers=0) == 0
    assert beyond(rows=ROWS, answers=4, micro_batch_tokens=2048) == 0, "the update needs more"
    # However many answers are asked for, so many tokens are kept at once: keys and values of 30 layers and one more, 3 heads of 64.
    most = memory.measuring_bytes(smollm2, "bf16", 0, 128, 1000, 512, cost.ANSWERED_TOKENS)
    assert most > cost.ANSWERED_TOKENS * 2 * 31 * 3 * 64 * 2
    assert memory.measuring_bytes(smollm2, "bf16", 0, 0, 1000, 512, cost.ANSWERED_TOKENS) == 0


def test_a_gpu_has_a_context_and_keeps_no_attention(llama3_8b: ModelFacts, laptop: Machine) -> None:
    gpu = Machine("cuda", "card", 1, 80 * 10**9, 312_000.0, 156_000.0, attention="flash")
    here, there, blocks = (cost.memory_parts(settings(), llama3_8b, machine, LONG) for machine in (laptop, gpu, replace(gpu, attention="blocks")))
    assert "process" not in there
    assert there["CUDA context"] < here["process"]
    assert here["activations"] == blocks["activations"] > there["activations"]


def test_rows_too_long_for_their_attention_to_be_kept_count_without_it(smollm2: ModelFacts, laptop: Machine) -> None:
    at_limit = replace(LONG, longest=memory.KEPT_ATTENTION_TOKENS, train_tokens=1000 * memory.KEPT_ATTENTION_TOKENS)
    above = replace(LONG, longest=2000, train_tokens=1000 * 1900)
    kept, again = (cost.memory_parts(settings(micro_batch_tokens=2000), smollm2, laptop, rows)["activations"] for rows in (at_limit, above))
    assert kept > 1.3 * again


@pytest.mark.parametrize("method", levers.COMPARED_METHODS)
def test_more_memory_never_fits_less(method: str, llama3_8b: ModelFacts, laptop: Machine) -> None:
    found = [one for one in levers.neighbors(settings(), llama3_8b, laptop, ROWS) if one.method == method]
    assert [one.card_bytes for one in found] == list(levers.CARDS_BYTES)
    assert [one.fits for one in found] == sorted(one.fits for one in found)
    assert all(one.needs_bytes <= cost.USABLE_SHARE * one.card_bytes for one in found if one.fits)


def test_what_fits_where_is_what_everybody_knows(llama3_8b: ModelFacts) -> None:
    gpu = Machine("cuda", "card", 1, 80 * 10**9, 312_000.0, 156_000.0, attention="flash")
    least = {
        method: next(
            (one.card_bytes // 10**9 for one in levers.neighbors(settings(), llama3_8b, gpu, ROWS) if one.method == method and one.fits), None
        )
        for method in levers.COMPARED_METHODS
    }
    assert least == {"qlora": 16, "lora": 24, "full": None}


def test_one_at_a_time_is_the_first_thing_to_change(smollm2: ModelFacts, laptop: Machine) -> None:
    asked = settings(side_by_side=True)
    needed, alone = (sum(cost.memory_parts(one, smollm2, laptop, ROWS).values()) for one in (asked, settings()))
    between = replace(laptop, memory_bytes=int((needed + alone) / 2 / cost.USABLE_SHARE))
    assert levers.cheapest_change(asked, smollm2, between, ROWS).startswith("training.side_by_side: false")


def test_the_same_run_elsewhere_costs_its_hours(llama3_8b: ModelFacts) -> None:
    prices = elsewhere.read_prices()
    found = {one.device: one for one in elsewhere.on_devices(settings(), llama3_8b, ROWS, 100, prices)}
    assert found["h100"].seconds < found["a100-80gb"].seconds < found["rtx-4090"].seconds
    assert not found["t4"].fits
    assert found["a100-80gb"].fits
    assert found["a100-80gb"].price == pytest.approx(found["a100-80gb"].seconds / 3600 * prices.hours["a100-80gb"])
    assert found["t4"].price is None, "it has no price in the file"


def test_every_shipped_price_is_of_a_device_and_has_a_source_and_a_date() -> None:
    shipped = Path(elsewhere.__file__).with_name(elsewhere.SHIPPED)
    table = tomllib.loads(shipped.read_text(encoding="utf-8"))
    assert table["source"].strip()
    assert table["date"]
    assert elsewhere.read_prices(shipped) == elsewhere.read_prices()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[hours]\na100-81gb = 1", "no device has the name 'a100-81gb'"),
        ("[hours]\nh100 = -1", "-1 is no price"),
        ("[hours]\nh100 = true", "True is no price"),
        ("[hours]\nh100 = inf", "inf is no price"),
        ("[hours]\nh100 = '2'", "'2' is no price"),
        ("hours = 3", "holds no prices"),
        ("", "holds no prices"),
        ("[hours", "cannot be read as prices"),
    ],
)
def test_a_file_of_prices_that_is_wrong_says_where(content: str, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=problem) as caught:
        elsewhere.read_prices(file)
    assert str(file) in caught.value.where
    with pytest.raises(ConfigError, match="cannot be read as prices"):
        elsewhere.read_prices(tmp_path / "missing.toml")


def test_counts_are_found_again_by_what_decides_them(tmp_path: Path) -> None:
    sources = [{"sha256": "a", "weight": 1.0, "path": "here"}]
    file = counts.counts_file(tmp_path, settings(), sources)
    assert counts.known(file) is None
    counts.keep(file, ROWS)
    assert counts.known(file) == ROWS
    assert counts.counts_file(tmp_path, settings(), [{**sources[0], "path": "there"}]) == file, "the same rows, elsewhere"
    others = [
        counts.counts_file(tmp_path, settings(), [{**sources[0], "sha256": "b"}]),
        counts.counts_file(tmp_path, settings().model_copy(update={"model": "n"}), sources),
        counts.counts_file(tmp_path, settings().model_copy(update={"template": "chatml"}), sources),
        counts.counts_file(tmp_path, cost.changed(settings(), {"data.max_length": 64}), sources),
        counts.counts_file(tmp_path, cost.changed(settings(), {"data.eval": "10%"}), sources),
    ]
    assert len({file, *others}) == 6
    assert counts.counts_file(tmp_path, cost.changed(settings(), {"training.batch_size": 4}), sources) == file, "it cuts nothing"
    for damaged in ("{", "[1]", '{"train_rows": 1}'):
        file.write_text(damaged, encoding="utf-8")
        assert counts.known(file) is None


def test_one_update_takes_its_share_of_a_run(smollm2: ModelFacts, laptop: Machine) -> None:
    asked = cost.changed(settings(), {"training.num_train_epochs": 3.0})
    update = replace(ROWS, train_rows=16, train_tokens=16 * 120, trained_tokens=16 * 30)
    whole = cost.training_seconds(asked, smollm2, laptop, ROWS, 3 * 1000 // 16)
    assert cost.update_seconds(asked, smollm2, laptop, update) == pytest.approx(whole * 16 / 3000, rel=0.01)


def test_the_cards_are_gpus_in_bf16_whatever_this_machine_is(llama3_8b: ModelFacts, laptop: Machine) -> None:
    gpu = Machine("cuda", "card", 1, 80 * 10**9, 312_000.0, 156_000.0, attention="flash")
    here = levers.neighbors(settings(precision="fp32"), llama3_8b, laptop, ROWS)
    assert here == levers.neighbors(settings(precision="bf16"), llama3_8b, gpu, ROWS)


WORDS = [
    # seconds, price, in words
    (0.4,      None,   "< 1 minute",  ""),
    (59.0,     0.0099, "< 1 minute",  "< 0.01"),
    (60.0,     0.0,    "60 s",        "0.00"),
    (7_200.0,  2.5,    "2.0 hours",   "2.50"),
]  # fmt: skip


@pytest.mark.parametrize(("seconds", "price", "time", "money"), WORDS)
def test_what_is_too_short_to_be_told_is_said_to_be_so(seconds: float, price: float | None, time: str, money: str) -> None:
    one = elsewhere.Elsewhere("t4", 16 * 10**9, True, 10**9, seconds, price)
    assert (one.time_in_words, one.price_in_words) == (time, money)
