"""Which way a score is better, in words and in what is called forgotten."""

from pathlib import Path
from typing import Any

import pytest

from luthier.config.settings import Settings
from luthier.diagnose import forgetting
from luthier.diagnose.evidence import Evidence
from luthier.diagnose.scores import compare, in_words
from luthier.records import Metric, Scorecard
from luthier.run_folder import RunFolder


def card(name: str, base: float, tuned: float, **data: object) -> Scorecard:
    return Scorecard({who: {name: Metric(value, value - 0.1, value + 0.1, 20)} for who, value in (("base", base), ("tuned", tuned))}, {}, dict(data))


@pytest.mark.parametrize(("name", "data"), [("wiki word_perplexity", {}), ("refusals", {}), ("heard wer", {"lower_is_better": ["heard wer"]})])
def test_less_of_what_should_be_less_is_a_gain_and_more_is_a_loss(name: str, data: dict[str, Any]) -> None:
    better, worse = card(name, 9.0, 4.0, **data), card(name, 4.0, 9.0, **data)
    assert " fell from 9 to 4" in compare(better)[0]
    assert "above base" in compare(worse)[0]
    assert in_words(name, better.models["base"][name]) == "9"

    def lost(own: Scorecard | None, other: Scorecard) -> int:
        settings = Settings.model_validate({"model": "m", "data": {"train": "t"}})
        bare: dict[str, Any] = dict.fromkeys(("reading_seconds", "usual_rate", "model"))
        lists: dict[str, Any] = {name: [] for name in ("steps", "evaluations", "skipped", "smaller_cuts", "updates")}
        run = RunFolder(Path("none"))
        found = Evidence(run, settings, **lists, **bare, ledger={}, plan={}, scorecard=own, other_scorecards={"suite": other})
        return len(forgetting._lost_scores(found))

    assert (lost(better, better), lost(None, better), lost(worse, worse), lost(None, worse)) == (0, 0, 2, 1)
