import json

import pytest
from huggingface_hub import ModelCard

from luthier.diagnose.model_card import card_text, write_model_card
from luthier.diagnose.report import write_report
from luthier.records import Metric


@pytest.fixture
def licensed(run):
    kept = {
        "model": {
            "name": "smollm2-135m-instruct",
            "license": "apache-2.0",
            "url": "https://www.apache.org",
            "asks_for": ["keep the notice"],
            "include": [],
        },
        "rows": [{"source": "data/train.jsonl", "license": "CC-BY-4.0", "attribution": "The Town of Elgin"}],
        "tuned": "what is tuned stands under the license of its model",
    }
    run.environment.write_text(json.dumps({"python": "3.11.7", "luthier": "0.1.0", "libraries": {"torch": "2.13.0+cpu"}, "licenses": kept}))
    return run


def test_the_hubs_own_library_reads_the_card(licensed):
    card = ModelCard.load(write_model_card(licensed))
    data = card.data
    assert (data.base_model, data.license, data.library_name) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0", "peft")
    assert data.pipeline_tag == "text-generation"
    assert {"luthier", "lora"} <= set(data.tags)
    found = {one.metric_type: one.metric_value for one in data.eval_results}
    assert found == {name: pytest.approx(metric.value, abs=1e-6) for name, metric in licensed.read_scorecard().models["tuned"].items()}
    assert data.model_name == licensed.name


def test_the_card_says_what_on_what_how_well_and_how_again(licensed):
    text = card_text(licensed)
    for words in (
        "Exact match rose from 0.0 % to 68.2 %",
        "660 read = 638 used + 22 set aside",
        "240 updates, 4.8 minutes, 1.87 GB at the peak",
        "Planned: 240 updates, 4.4 minutes",
        "| tuned | 68.2 % (62.9 to 73.1 %, n = 318)",
        "keep the notice",
        "The Town of Elgin, licensed under Creative Commons Attribution 4.0 (https://creativecommons.org/licenses/by/4.0/)",
        "pip install luthier==0.1.0 torch==2.13.0",
    ):
        assert words in text


def test_a_license_that_the_hub_has_no_id_for_and_a_base_in_a_folder(run):
    environment = {"licenses": {"model": {"name": "mine", "license": "A License of Ours"}, "rows": []}}
    run.environment.write_text(json.dumps(environment))
    run.config.write_text("model: /home/ann/models/mine\ndata: {train: a.jsonl}\n")
    data = ModelCard(card_text(run)).data
    assert (data.license, data.license_name, data.base_model) == ("other", "A License of Ours", None)


@pytest.mark.parametrize("broken", ["config", "environment", "scorecard", "ledger", "plan"])
def test_a_broken_file_costs_its_own_part_only(licensed, broken):
    getattr(licensed, broken).write_text("{cut: [")
    write_report(licensed)
    assert licensed.name in (licensed.path / "model_card.md").read_text()


def test_a_run_that_was_not_evaluated_says_so(empty_run):
    assert "Its answers are not measured yet." in card_text(empty_run)
    assert ModelCard(card_text(empty_run)).data.eval_results is None


def test_the_folders_of_a_metrics_file_stay_on_this_machine(run, change):
    measured = {"/home/ann/secret/score.py:right_tool": Metric(0.5, 0.4, 0.6, 9), "json_schema=/home/ann/secret/a.json": Metric(0.5, 0.4, 0.6, 9)}
    change(tuned=measured)
    text = card_text(run)
    assert "score.py:right tool" in text
    assert "json schema=a.json" in text
    assert "secret" not in text + write_report(run).read_text()


def test_bars_and_line_feeds_in_a_name_break_no_table(run, change):
    change(tuned={"exact_match": Metric(0.5, 0.4, 0.6, 9)}, **{"a | b\nc": {"exact_match": Metric(0.1, 0.0, 0.2, 9)}})
    assert "| a \\| b c | 10.0 % (0.0 to 20.0 %, n = 9) |" in card_text(run)
