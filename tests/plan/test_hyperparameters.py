"""What each auto becomes: the tables of the guides, and which rule counts first where two speak."""

import math
from dataclasses import replace

import pytest

from luthier.config.adapters import alpha_of
from luthier.config.settings import Settings
from luthier.models.facts import ModelFacts
from luthier.plan import in_words, ranges
from luthier.plan.choose import DataShape, resolve
from luthier.plan.hyperparameters import band, learning_rate
from luthier.plan.machine import rules
from luthier.plan.wishes import rules as choosing


def settings(**sections):
    return Settings.model_validate({"model": "m", **sections, "data": {"train": "t.jsonl", **sections.get("data", {})}})


def rows(count, shared=0):
    return DataShape(count, count * 150, count * 40, 210, shared, 50)


def values(plan):
    return {choice.name: choice.value for choice in plan.resolved}


@pytest.mark.parametrize(
    ("count", "rank", "alpha", "dropout", "epochs"),
    [
        (60, 8, 16, 0.1, 10),
        (999, 8, 16, 0.1, 5),
        (1_000, 16, 32, 0.05, 3),
        (9_999, 16, 32, 0.05, 3),
        (10_000, 32, 64, 0.0, 2),
        (99_999, 32, 64, 0.0, 2),
        (100_000, 64, 64, 0.0, 1),
    ],
)
def test_rank_alpha_dropout_and_passes_go_by_the_rows(count, rank, alpha, dropout, epochs, llama3_8b, laptop):
    found = values(resolve(settings(), llama3_8b, laptop, rows(count)))
    assert (found["lora.r"], found["lora.lora_alpha"], found["lora.lora_dropout"]) == (rank, alpha, dropout)
    assert found["training.num_train_epochs"] == epochs


@pytest.mark.parametrize(
    ("domain", "count", "rank"),
    [("style", 500, 8), ("style", 500_000, 16), ("near", 500, 16), ("near", 50_000, 32), ("far", 500, 64), ("far", 500_000, 64)],
)
def test_the_domain_counts_before_the_rows_for_the_rank(domain, count, rank, llama3_8b, laptop):
    plan = resolve(settings(plan={"domain": domain}), llama3_8b, laptop, rows(count))
    assert plan.settings.lora.r == rank
    assert f"domain: {domain} takes" in next(choice.why for choice in plan.resolved if choice.name == "lora.r")


def test_a_rank_that_is_given_counts_before_the_domain_and_alpha_goes_with_it(llama3_8b, laptop):
    plan = resolve(settings(lora={"r": 24}, plan={"domain": "far"}), llama3_8b, laptop, rows(500))
    assert plan.settings.lora.numbers[:2] == (24, 48)
    assert [alpha_of(r) for r in (4, 8, 16, 32, 64, 128)] == [8, 16, 32, 64, 64, 128]


def test_a_rank_is_never_wider_than_the_model(smollm2, laptop):
    plan = resolve(settings(plan={"domain": "far"}), replace(smollm2, hidden=48), laptop, rows(500))
    assert plan.settings.lora.r == 48
    assert "no more" in next(choice.why for choice in plan.resolved if choice.name == "lora.r")


def test_no_dropout_where_it_would_end_a_sharing_that_pays(smollm2, laptop):
    found = {shared: resolve(settings(), smollm2, laptop, rows(500, shared)).settings.lora.lora_dropout for shared in (0, 29, 30, 100)}
    assert found == {0: 0.1, 29: 0.1, 30: 0.0, 100: 0.0}
    unshared = settings(training={"share_prefixes": False})
    assert resolve(unshared, smollm2, laptop, rows(500, 100)).settings.lora.lora_dropout == 0.1


@pytest.mark.parametrize(
    ("task", "size"),
    [(None, 32), ("chat", 32), ("reasoning", 16), ("code", 16), ("classification", 256), ("extraction", 256)],
)
def test_hard_tasks_get_small_batches_and_simple_ones_large(task, size, llama3_8b, laptop):
    plan = resolve(settings(plan={"task": task}), llama3_8b, laptop, rows(200_000))
    assert plan.settings.training.batch_size == size
    assert not [note for note in plan.notes if "batch_size" in note]


def test_every_task_that_a_plan_takes_is_one_that_models_choose_takes():
    assert set(Settings.model_json_schema()["$defs"]["PlanSettings"]["properties"]["task"]["anyOf"][0]["enum"]) == choosing()["tasks"].keys()


def test_preferences_warm_up_longer_and_pass_less_often(llama3_8b, laptop):
    answers, pairs = (resolve(settings(objective=objective), llama3_8b, laptop, rows(60)).settings.training for objective in ("sft", "dpo"))
    assert (answers.warmup_ratio, pairs.warmup_ratio) == (0.03, 0.1)
    assert (answers.num_train_epochs, pairs.num_train_epochs) == (10, 3)


@pytest.mark.parametrize(("method", "at_7b", "low", "high"), [("full", 1e-5, 5e-6, 5e-5), ("lora", 1e-4, 5e-5, 3e-4), ("qlora", 2e-4, 1e-4, 5e-4)])
def test_the_rate_at_7b_is_the_guides_and_so_is_its_range(method, at_7b, low, high, llama3_8b, laptop):
    model = replace(llama3_8b, parameters=7_000_000_000)
    plan = resolve(settings(method=method), model, laptop, rows(5_000))
    assert plan.settings.training.learning_rate == pytest.approx(at_7b)
    found = next(one for one in ranges.ranges(plan.settings, model, plan.rows, plan.updates) if one.name == "training.learning_rate")
    assert (found.low, found.high) == pytest.approx((low, high))


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_smaller_model_takes_at_least_the_rate_of_a_larger_one(method, llama3_8b):
    sizes = [10 ** (exponent / 10) for exponent in range(75, 120)]
    rates = [float(learning_rate(replace(llama3_8b, parameters=int(size)), method).value) for size in sizes]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] >= 10 * rates[-1]


@pytest.mark.parametrize("count", [1, 3, 40, 99, 500, 5_000, 50_000, 500_000])
@pytest.mark.parametrize("method", ["lora", "qlora", "full", "prefix"])
@pytest.mark.parametrize("intent", [{}, {"domain": "far", "task": "extraction"}, {"domain": "style", "task": "code"}])
def test_what_auto_takes_is_never_warned_of(count, method, intent, smollm2, laptop):
    plan = resolve(settings(method=method, plan=intent), smollm2, laptop, rows(count))
    assert not [note for note in plan.notes if note.startswith("warning")]
    assert plan.updates >= min(20, count)


@pytest.mark.parametrize(
    ("asked", "warned"),
    [
        ({"training": {"learning_rate": 1e-2}}, "training.learning_rate is 0.01; usual is 0.0005 to 0.003"),
        ({"training": {"learning_rate": 1e-5}}, "training.learning_rate is 1e-05; usual is"),
        ({"training": {"batch_size": 512}}, "training.batch_size is 512; usual is 32 to 128"),
        ({"training": {"num_train_epochs": 20}}, "training.num_train_epochs is 20; usual is 3 to 5"),
        ({"training": {"warmup_ratio": 0.5}}, "training.warmup_ratio is 0.5; usual is 0 to 0.1"),
        ({"training": {"weight_decay": 1.0}}, "training.weight_decay is 1; usual is 0 to 0.1"),
        ({"training": {"max_grad_norm": 50}}, "training.max_grad_norm is 50; usual is 0.3 to 1"),
        ({"lora": {"r": 256}}, "lora.r is 256; usual is 8 to 64"),
        ({"lora": {"r": 64}, "plan": {"domain": "style"}}, "lora.r is 64; usual is 8 to 16"),
        ({"lora": {"r": 16, "lora_alpha": 128}}, "lora.lora_alpha is 128; usual is 16 to 32"),
        ({"lora": {"lora_dropout": 0.5}}, "lora.lora_dropout is 0.5; usual is 0 to 0.1"),
    ],
)
def test_a_number_outside_its_range_is_warned_of_and_taken(asked, warned, smollm2, laptop):
    plan = resolve(settings(**asked), smollm2, laptop, rows(5_000))
    warnings = [line for line in plan.lines() if line.startswith("warning")]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"warning: {warned}")
    assert values(plan).keys().isdisjoint({warned.split()[0]})


def test_few_passes_are_warned_of_only_where_they_make_few_updates(smollm2, laptop):
    few, many = (resolve(settings(training={"num_train_epochs": 1, "batch_size": size}), smollm2, laptop, rows(900)).notes for size in (32, 4))
    assert any("num_train_epochs is 1; usual is 5 to 10" in note for note in few)
    assert many == []


def test_with_rank_stabilized_scale_alpha_may_be_near_the_root_of_r(smollm2, laptop):
    asked = settings(lora={"r": 64, "lora_alpha": math.sqrt(64), "use_rslora": True})
    assert not [note for note in resolve(asked, smollm2, laptop, rows(5_000)).notes if "lora_alpha" in note]


def test_the_guide_has_the_tables_that_are_used(pytestconfig):
    guide = (pytestconfig.rootpath / "docs" / "choosing-settings.md").read_text(encoding="utf-8")
    for below, passes, low, high in rules()["num_train_epochs"]["bands"]:
        count = (below or 10**6) - 1
        r, dropout = (band(rules()[name]["bands"], count)[1] for name in ("lora_rank", "lora_dropout"))
        named = f"{'under' if below == 100 else 'to'} {below:,}" if below else "more"
        assert f"| {named} | {passes} ({low:g} to {high:g}) | {r} / {alpha_of(r):g} | {dropout:g} |" in guide
    for size in (135e6, 1e9, 7e9, 13e9, 70e9):
        model = ModelFacts(int(size), 1, 1, 1, 1, 1, 1, 1, 1, True)
        rates = [f"{float(learning_rate(model, method).value):.0e}".replace("e-0", "e-") for method in ("lora", "qlora", "full")]
        assert f"| {in_words.count(int(size))} | {' | '.join(rates)} |" in guide


def test_few_passes_with_many_updates_are_no_mistake_and_the_usual_band_is_shown_all_the_same(smollm2, laptop):
    plan = resolve(settings(training={"num_train_epochs": 1, "batch_size": 4}), smollm2, laptop, rows(900))
    passes = next(one for one in ranges.ranges(plan.settings, smollm2, plan.rows, plan.updates) if one.name == "training.num_train_epochs")
    assert (str(passes), passes.holds) == ("5 to 10", True)


def test_no_dropout_where_sharing_was_asked_for(smollm2, laptop):
    found = {
        shared: resolve(settings(training={"share_prefixes": True}), smollm2, laptop, rows(500, shared)).settings.lora.lora_dropout
        for shared in (0, 1)
    }
    assert found == {0: 0.1, 1: 0.0}  # one token is less than what pays
