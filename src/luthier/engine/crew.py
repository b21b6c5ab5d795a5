"""One update on several ranks: each runs its part of the rows, and the sums meet once. What the leader does, it lets the others do too.

The leader (rank 0) runs the recipe as a single process would: it reads rows, decides, evaluates, saves. The others follow its orders, and
call the same engine with the same rows; so every rank deals them out by itself, to the same result, and makes the same step. The loss is
one mean over all trained tokens of the update, whichever rank they are on, and its gradients are added up once (docs/decisions/0012-ranks.md).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from luthier.engine import dealing, orders, ranks, sequence, sharding, virtual
from luthier.engine.draws import draw
from luthier.engine.judged import LossOf
from luthier.engine.optimizers import NormOf, norm_of
from luthier.engine.sharding import Sharding
from luthier.errors import ConfigError, LuthierError
from luthier.records import TokenizedExample, UpdateLoss
from luthier.stopping import ENDING, Stop

NOTHING = UpdateLoss(0.0, 0, 0, 0)


@dataclass(slots=True)
class Crew:
    """The ranks that train one engine together. `sharding`: how they share the weights, where no rank has all of them.

    With `sequence_parallel` so many ranks are a `team`, which runs the same rows together.
    `stop` is told of a signal that any rank got: all end, or save, after the same update.
    """

    quadratic_tokens: int
    sharding: Sharding | None = None
    sequence_parallel: int = 1
    team: ranks.Team | None = None
    stop: Stop = field(default_factory=Stop)
    draw: int = 0

    @property
    def together(self) -> int:
        """How many ranks run the same rows."""
        return ranks.world() if self.sharding and self.sharding.same_rows else self.sequence_parallel

    @property
    def copies(self) -> int:
        """How many ranks find the same loss and the same gradients (of what is not cut): all, where they run the same tokens."""
        return ranks.world() if self.sharding and self.sharding.same_rows else 1

    def form_team(self) -> None:
        """All ranks at once, before the first update."""
        if self.sequence_parallel > 1:
            self.team = ranks.team_of(self.sequence_parallel)

    def require_fast(self, engine: Any) -> None:
        """Raises ConfigError where ranks are to share micro-batches and the model runs row by row, or with tokens that are no row's."""
        if self.sequence_parallel == 1:
            return
        if reason := engine.plain_reason or ("virtual tokens stand before every row" if virtual.tokens(engine.model) else ""):
            problem = f"ranks cannot share the micro-batches of this model: {reason}"
            raise ConfigError(problem, where="sequence_parallel", next_step="sequence_parallel: 1")

    def order(self, do: str, **content: Any) -> None:
        """Let the other ranks do what this one, where it leads, is about to do."""
        if ranks.leads():
            ranks.say({"do": do, **content})

    def order_update(self, do: str, **content: Any) -> None:
        """The same for loss and gradients of an update, whose draws are the leader's on all ranks."""
        if ranks.leads():
            self.draw = draw()
            self.order(do, draw=self.draw, **content)

    def forward_backward(self, engine: Any, examples: list[TokenizedExample], row_losses: bool) -> UpdateLoss:
        """What Engine.forward_backward gives, of rows that all ranks know."""
        self.order_update("forward_backward", rows=orders.of_examples(examples), row_losses=row_losses)
        own = self._deal(engine, examples, None)
        rows = [examples[place] for place in own]
        part = _trained(engine, rows) / _trained(engine, examples)
        with self._here(engine, own, part):
            measured = self._filled(engine, rows, None, lambda: engine.forward_backward_here(rows, row_losses))
        losses = [0.0] * len(examples) if row_losses else []
        for place, loss in zip(own, measured.row_losses or [], strict=False):
            losses[place] = loss
        counted, others = self._meet(engine, measured, part, losses)
        return UpdateLoss(*counted, others if row_losses else None)

    def forward_backward_judged(self, engine: Any, examples: list[TokenizedExample], together: list[list[int]], loss_of: LossOf) -> UpdateLoss:
        """What Engine.forward_backward_judged gives. The order is given before, by whoever knows what `loss_of` is made of."""
        own = self._deal(engine, examples, together)
        rows, here = [examples[place] for place in own], {place: index for index, place in enumerate(own)}
        groups = [[here[place] for place in group] for group in together if group[0] in here]
        found = [0.0] * len(examples)

        def loss_of_own(places: list[int], logps_E: torch.Tensor) -> torch.Tensor:
            for place, value in zip(places, logps_E.detach().tolist(), strict=True):
                found[own[place]] = value
            return loss_of([own[place] for place in places], logps_E)

        with self._here(engine, own, 1.0):
            measured = self._filled(engine, rows, groups, lambda: engine.forward_backward_judged_here(rows, groups, loss_of_own))
        counted, logps = self._meet(engine, measured, 1.0, found)
        elsewhere = [place for place in range(len(examples)) if place not in here]
        if elsewhere and ranks.leads():  # what is told of the update's rows is told of all of them
            loss_of(elsewhere, torch.tensor([logps[place] for place in elsewhere], dtype=torch.float64))
        return UpdateLoss(*counted)

    def begin_step(self, engine: Any, learning_rate: float) -> NormOf:
        """Let the others make the same step of the optimizer. Gives the way to the gradients' norm."""
        self.order("step", learning_rate=learning_rate)
        return partial(self._norm, {id(engine.masters.weights[name]) for name in engine.masters.shards}) if self.sharding else norm_of

    def _norm(self, shards: set[int], parameters: Sequence[torch.Tensor]) -> torch.Tensor:
        """Of all ranks' parts, and of what stands on each of them once."""
        assert self.sharding is not None
        here = norm_of([parameter for parameter in parameters if id(parameter) in shards])
        everywhere = norm_of([parameter for parameter in parameters if id(parameter) not in shards])
        (squares,) = ranks.sums([float(here) ** 2])
        return here.new_tensor(math.sqrt(squares / self.sharding.replicas + float(everywhere) ** 2))

    def _deal(self, engine: Any, examples: list[TokenizedExample], together: Sequence[Sequence[int]] | None) -> list[int]:
        """The places of this rank's examples, which are those of its whole team."""
        if any(weight.grad is not None for weight in engine.masters.weights.values()):
            problem = "gradients of an earlier call wait, and on several ranks each update is one call"
            raise LuthierError(problem, where="engine", next_step="optimizer_step or forget_gradients first")
        engine.check_length(max(len(example.token_ids) for example in examples))
        self.require_fast(engine)
        shared = engine.share_prefixes and not engine.plain_reason
        teams = ranks.world() // self.together
        dealt = dealing.deal(examples, teams, share_prefixes=shared, quadratic_tokens=self.quadratic_tokens, together=together)
        return dealt[ranks.rank() // self.together]

    @contextmanager
    def _here(self, engine: Any, own: list[int], part: float) -> Iterator[None]:
        """While it lasts the engine runs `part` of an update, and draws for its rows as if it ran all of them."""
        engine.part, engine.draws.given, engine.draws.places = part, self.draw, own
        if self.sharding:
            self.sharding.alone = False
        try:
            with sequence.together(self.team):
                yield
        finally:
            engine.part, engine.draws.given, engine.draws.places = 1.0, None, None
            if self.sharding:
                self.sharding.alone = True

    def _filled(
        self, engine: Any, rows: list[TokenizedExample], together: Sequence[Sequence[int]] | None, run: Callable[[], UpdateLoss]
    ) -> UpdateLoss:
        """What `run` gives, or nothing where no row came here. Each pass through sharded weights is all ranks': who has fewer, fills."""
        if self.sharding is None:
            return run() if rows else NOTHING
        engine.model.train()
        cut = len(rows) if engine.plain_reason or not rows else len(engine.lay_out(rows, together, learns=True).micro_batches)
        most = ranks.most(cut)
        measured = run() if rows else NOTHING
        for _ in range(most - cut):
            sharding.fill(engine.model)
        return measured

    def _meet(self, engine: Any, measured: UpdateLoss, part: float, values: list[float]) -> tuple[tuple[float, int, int, int], list[float]]:
        """Add up what all ranks measured and what they gathered. Gives loss and token counts of the whole update, and the sums of `values`."""
        masters = engine.masters
        masters.take_shards()
        counts = [measured.loss * part, measured.logical_tokens, measured.executed_tokens, measured.trained_tokens]
        wishes = [*(self.stop.signal == number for number in ENDING), self.stop.save_now]
        there = [weight.grad is not None for weight in masters.weights.values()]
        totals = iter(ranks.sums([float(number) for number in (*counts, *values, *wishes, *there)]))
        loss, *tokens = [next(totals) for _ in counts]
        others = [next(totals) / self.copies for _ in values]
        self._heed([next(totals) for _ in wishes])
        # A weight that no row of the update reaches (an expert) is left alone, as one process would leave it.
        shards = set(masters.shards)
        reached = [weight for (name, weight), count in zip(masters.weights.items(), totals, strict=True) if count and name not in shards]
        gradients = [masters.gradient_of(weight) for weight in reached]
        ranks.add_up(gradients)
        if self.copies > 1:
            torch._foreach_div_(gradients, self.copies)
        # Each rank of a team counts all tokens of its rows.
        return (loss / self.copies, *(round(count / self.together) for count in tokens)), others  # type: ignore[return-value]

    def _heed(self, wishes: list[float]) -> None:
        *signals, save_now = wishes
        asked = next((int(number) for number, count in zip(ENDING, signals, strict=True) if count), 0)
        self.stop.signal = self.stop.signal or asked
        # The leader's saver takes its own wish back; those of the others are told.
        self.stop.save_now = bool(save_now) if ranks.leads() else False


def _trained(engine: Any, examples: Sequence[TokenizedExample]) -> int:
    """The tokens that a mean is over."""
    return sum(example.trained_tokens if engine.plain_reason else sum(example.trained[1:]) for example in examples)
