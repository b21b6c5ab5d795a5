"""Whether to tune at all, and by which method: what the plan says for rows, memory, domain, and the cost of mistakes."""

from dataclasses import replace
from pathlib import Path

import pytest

from luthier.config.settings import Settings
from luthier.plan.choose import DataShape, resolve
from luthier.plan.decision import decide
from luthier.plan.machine import rules


@pytest.fixture
def decision(llama3_8b, laptop):
    """decision(rows=..., gigabytes=..., held_out=..., **settings): of an 8B model in bf16."""

    def of(rows=5_000, gigabytes=80, held_out=100, **sections):
        sections.setdefault("training", {"precision": "bf16"})
        asked = Settings.model_validate({"model": "m", "data": {"train": "t.jsonl"}, **sections})
        machine = replace(laptop, memory_bytes=gigabytes * 10**9)
        return decide(resolve(asked, llama3_8b, machine, DataShape(rows, rows * 150, rows * 40, 210, 0, 50)), held_out)

    return of


@pytest.mark.parametrize(
    ("gigabytes", "rows", "method"),
    [(12, 5_000, "qlora"), (24, 5_000, "lora"), (80, 5_000, "lora"), (80, 200_000, "lora"), (200, 200_000, "full"), (4, 5_000, "")],
)
def test_the_method_goes_by_the_need_and_the_rows(gigabytes, rows, method, decision):
    found = decision(rows=rows, gigabytes=gigabytes)
    assert found.method == method
    assert found.needs_bytes["qlora"] < found.needs_bytes["lora"] < found.needs_bytes["full"]
    assert found.override == {"lora": "", "": ""}.get(method, f"method={method}")


def test_what_does_not_fit_is_said_with_what_does(decision):
    assert any("lora would not fit, qlora does" in reason for reason in decision(gigabytes=12).reasons)
    assert any("full would not fit, lora does" in reason for reason in decision(gigabytes=80, rows=200_000).reasons)
    nothing = decision(gigabytes=4)
    assert any("none of them fits" in reason for reason in nothing.reasons)
    assert "luthier models choose" in nothing.lines()[0]


def test_a_far_domain_considers_full_earlier_and_a_style_never(decision):
    assert decision(gigabytes=200, rows=20_000).method == "lora"
    assert decision(gigabytes=200, rows=20_000, plan={"domain": "far"}).method == "full"
    assert decision(gigabytes=200, rows=500_000, plan={"domain": "style"}).method == "lora"


def test_costly_mistakes_consider_full_earlier_and_look_at_the_evaluation(decision):
    costly = {"mistakes": "costly"}
    assert decision(gigabytes=200, rows=60_000).method == "lora"
    assert decision(gigabytes=200, rows=60_000, plan=costly).method == "full"
    assert any("100 held-out rows tell a share of right answers to about 10 points; 400" in line for line in decision(plan=costly).reasons)
    assert any("no rows are held out" in line for line in decision(plan=costly, held_out=0).reasons)
    assert any("4 bits round the base" in line for line in decision(plan=costly, gigabytes=12).reasons)
    assert not any("mistakes" in line for line in decision(gigabytes=12).reasons)


@pytest.mark.parametrize(
    ("rows", "plan", "first"),
    [
        (5_000, {}, "tune"),
        (49, {}, "prompt"),
        (50, {}, "tune"),
        (5_000, {"facts": "changing"}, "retrieve"),
        (20, {"facts": "changing"}, "retrieve"),
        (5_000, {"task": "rag"}, "retrieve"),
    ],
)
def test_prompting_or_retrieval_comes_first_where_it_is_the_better_step(rows, plan, first, decision):
    found = decision(rows=rows, plan=plan)
    assert found.first == first
    assert found.lines()[0].startswith({"tune": "decision: fine-tune", "prompt": "decision: a prompt", "retrieve": "decision: retrieval"}[first])


@pytest.mark.parametrize("asked", ["full", "qlora", "dora", "prefix"])
def test_another_method_that_was_asked_for_is_planned_and_the_better_one_named(asked, decision):
    found = decision(method=asked)
    assert found.method == "lora"
    assert found.override == ("method=lora" if asked in ("full", "qlora") else "")
    assert any(f"method: {asked} is planned" in reason for reason in found.reasons) == (asked != "dora")


def test_the_command_that_takes_it_keeps_the_overrides_and_names_what_would_be_refused(decision):
    found = decision(method="qlora")
    overrides = ["method=qlora", "qlora.double_quant=false", "model=a model", "seed=1"]
    given = {"lora.r": "l.yaml:3", "qlora.quantization": "l.yaml:5", "qlora.double_quant": "command line: qlora.double_quant=false"}
    call = "luthier plan l.yaml 'model=a model' seed=1 method=lora"
    assert found.command(Path("l.yaml"), overrides, given) == f"{call}   (and take the block qlora: out)"
    assert found.command(Path("l.yaml"), overrides, {"lora.r": "l.yaml:3"}) == call
    assert decision().command(Path("l.yaml"), overrides, given) == ""


@pytest.mark.parametrize("domain", ["style", "near", "far"])
def test_the_ranks_of_a_domain_are_those_of_the_table(domain, decision):
    least, most = rules()["lora_rank"]["domains"][domain]
    assert any(f"rank {least} to {most}" in reason for reason in decision(plan={"domain": domain}).reasons)
