"""One check that fails makes the verdict; one that does not apply does not."""

import pytest

from luthier.recipes.proofs.bench import FAILED, NOT_HERE, PASSED
from luthier.recipes.verify import Verdict
from luthier.records import Proof


@pytest.mark.parametrize(("states", "passed"), [([PASSED, NOT_HERE], True), ([PASSED, FAILED, PASSED], False), ([FAILED], False), ([PASSED], True)])
def test_a_verdict_is_that_of_its_worst_check(states: list[str], passed: bool) -> None:
    verdict = Verdict([Proof("masks", state, "seen on rows.jsonl:1") for state in states], {}, 1.0)
    assert verdict.passed == passed
    assert verdict.as_json()["passed"] == passed
