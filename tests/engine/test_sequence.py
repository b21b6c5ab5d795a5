"""Ranks that share each micro-batch: what each of them has of it, and what cannot be shared. That they train what one process trains stands in
tests/recipes/test_ranks.py."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from luthier.config.settings import Settings
from luthier.engine import ranks, sequence
from luthier.engine.batches import Document
from luthier.engine.blocks import Rule
from luthier.engine.crew import Crew
from luthier.engine.packed import Packed
from luthier.engine.ranks import Team
from luthier.errors import ConfigError
from luthier.run_folder import RunFolder
from luthier.train import following

DOCUMENTS = [
    Document([5, 6, 7], 0, rows=[1, 2], targets=[61, 71]),
    Document([8, 9, 10, 11, 12, 13, 14, 15], 1, rows=[0, 4, 7], targets=[81, 121, 151]),
]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_target_is_predicted_by_one_rank_from_the_token_before_it(size: int) -> None:
    found, lengths = [], set()
    for place in range(size):
        with sequence.together(Team(size, place, None)):
            documents = sequence.shared(DOCUMENTS)
            tokens = [token for one in documents for token in one.inputs]
            run = sequence.run_of(len(tokens))
            lengths.add(run.stop - run.start)
            starts = [sum(len(one.inputs) for one in documents[:index]) for index in range(len(documents))]
            here = [
                (start + row, target) for start, one in zip(starts, documents, strict=True) for row, target in zip(one.rows, one.targets, strict=True)
            ]
            assert all(run.start <= row < run.stop for row, _ in here)
            found += [(tokens[row], target) for row, target in here]
    assert found == [(6, 61), (7, 71), (8, 81), (12, 121), (15, 151)]
    assert lengths == {-(-11 // size)}, "what is swapped is of one size"


@pytest.mark.parametrize("size", [2, 4])
def test_attention_of_a_team_is_that_of_one_rank(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Each rank is a thread here, and what they swap lies in a list."""
    meeting, given = threading.Barrier(size, timeout=20), [torch.empty(0)] * size

    def swap(team: Team, x: Tensor) -> Tensor:
        given[team.place] = x.detach().clone()
        meeting.wait()
        received = torch.stack([other[team.place] for other in given])
        meeting.wait()
        return received

    monkeypatch.setattr(ranks, "swap", swap)
    lengths, rule = [3, 4, 9], Rule(0.5)
    draw = torch.Generator().manual_seed(0)
    q, k, v, slope = (torch.randn(heads, 16, 6, generator=draw) for heads in (8, 4, 4, 8))

    def attention(team: Team | None, run: slice) -> list[Tensor]:
        """What attention gives for the tokens of `run`, and the gradients of its queries, keys and values."""
        own = [x[:, run].clone().requires_grad_() for x in (q, k, v)]
        mixed = Packed(lengths, team=team).attend(0, *own, rule)
        mixed.backward(slope[:, run].transpose(0, 1))
        return [mixed.detach().transpose(0, 1), *(x.grad for x in own if x.grad is not None)]

    whole = attention(None, slice(0, 16))
    with ThreadPoolExecutor(size) as pool:
        parts = list(pool.map(lambda place: attention(Team(size, place, None), slice(place * 16 // size, (place + 1) * 16 // size)), range(size)))
    for one, shared in zip(whole, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(shared, dim=1), one, rtol=1e-5, atol=1e-6)


def test_outside_of_a_team_nothing_is_cut() -> None:
    assert sequence.shared(DOCUMENTS) is DOCUMENTS
    assert sequence.run_of(11) == slice(0, 11)


@pytest.mark.parametrize("reason", ["its head is not one plain matrix", ""])
def test_a_model_on_the_plain_path_is_refused(reason: str) -> None:
    engine = SimpleNamespace(plain_reason=reason, model=None)
    Crew(1).require_fast(engine)
    if not reason:
        Crew(1, sequence_parallel=2).require_fast(engine)
        return
    with pytest.raises(ConfigError, match=f"ranks cannot share the micro-batches of this model: {reason}") as refused:
        Crew(1, sequence_parallel=2).require_fast(engine)
    assert (refused.value.where, refused.value.next_step) == ("sequence_parallel", "sequence_parallel: 1")


def test_a_host_whose_ranks_are_no_whole_teams_is_refused(tmp_path: Path) -> None:
    settings = Settings.model_validate({"model": "m", "data": {"train": "t"}, "devices": "auto", "sequence_parallel": 2})
    with pytest.raises(ConfigError, match="1 ranks of a host cannot be cut into teams of sequence_parallel: 2"):
        following.lead(RunFolder(tmp_path), settings)
