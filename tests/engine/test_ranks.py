"""A group without its processes: what a rank does where rank 0 stands still. Real ranks are in tests/recipes and tests/launch."""

import os
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from luthier.engine import ranks
from luthier.errors import RunError


class StandingStill:
    """The store of a rank 0 that was stopped: torch's waits for its answer for ever, whatever the time limit."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def wait(self, keys: list[str], limit: timedelta) -> None:
        assert self.ended.wait(30), "nobody ended this process"
        raise dist.DistNetworkError("the process ends")

    def check(self, keys: list[str]) -> bool:
        self.wait(keys, timedelta(0))
        return True

    def set(self, key: str, value: str) -> None:
        return


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> tuple[StandingStill, list[int]]:
    store, codes = StandingStill(), list[int]()

    def end(code: int) -> Any:
        codes.append(code)
        store.ended.set()

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(ranks, "_group", ranks._Group(1, 2, store, timedelta(seconds=0.05)))
    monkeypatch.setattr(ranks, "PATIENCE", timedelta(seconds=0.05))
    monkeypatch.setattr(ranks, "FAREWELL_S", 0.05)
    return store, codes


def test_a_rank_that_waits_for_an_order_of_one_that_stands_still_says_so_and_ends(
    group: tuple[StandingStill, list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RunError):
        ranks.hear()
    assert group[1] == [RunError.exit_code]
    assert "rank 1: rank 0 does not answer: it hangs, or its host does" in capsys.readouterr().err


class Silent:
    """The store of a rank 0 whose process answers, and which gives its order late."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def wait(self, keys: list[str], limit: timedelta) -> None:
        self.looks -= 1
        time.sleep(limit.total_seconds())
        if self.looks > 0:
            raise dist.DistStoreError("nothing there yet")

    def get(self, key: str) -> str:
        return '{"do": "end"}'


@pytest.mark.parametrize(("rank", "looks", "times"), [(1, 6, 2), (1, 1, 0), (2, 6, 0)])
def test_a_leader_that_answers_and_gives_no_order_for_the_time_limit_is_named_once_each_time_and_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: int, looks: int, times: int
) -> None:
    monkeypatch.setattr(ranks, "_group", ranks._Group(rank, 3, Silent(looks), timedelta(seconds=0.5)))
    monkeypatch.setattr(ranks, "PATIENCE", timedelta(seconds=0.24))
    assert ranks.hear() == {"do": "end"}
    said = capsys.readouterr().err
    assert said.count("rank 1: rank 0 has given no order for ") == times
    assert ("end it, and the run goes on from its last checkpoint" in said) == bool(times)


def test_so_does_one_whose_sum_was_not_met(
    group: tuple[StandingStill, list[int]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed_out(*args: Any) -> None:
        raise RuntimeError("timed out")

    monkeypatch.setattr(dist, "all_reduce", timed_out)
    with pytest.raises(RunError):
        ranks.sums([1.0])
    assert group[1] == [RunError.exit_code]
    assert "rank 0 does not answer" in capsys.readouterr().err


def test_one_that_answers_in_time_is_left_alone(group: tuple[StandingStill, list[int]]) -> None:
    with ranks._answered(ranks._joined(), timedelta(seconds=0.05)):
        pass
    assert not group[0].ended.wait(0.2)
    assert group[1] == []
