"""A model that can be trained and asked, in four calls: forward_backward, optimizer_step, save_state, sample.

engine = Engine.open("smollm2-135m-instruct", lora={"r": 16})
examples = engine.tokenize([{"messages": [...]}, ...])
loss = engine.forward_backward(examples).loss
engine.optimizer_step(learning_rate=1e-3)
engine.sample("Where is the nearest luthier?")
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from peft import PeftModel

from luthier.data import tokenize as tokens
from luthier.data.formats.build import Built, How, build
from luthier.engine import (
    attention,
    elementwise,
    embedding,
    fp8,
    generate,
    groups,
    hindrance,
    judged,
    kernels,
    lanes,
    likelihood,
    lora,
    noise,
    optimizers,
    reference,
    sharding,
    shortage,
    tuners,
    update,
    virtual,
)
from luthier.engine.answers import Text, text_of
from luthier.engine.batches import Step, lay_out
from luthier.engine.crew import Crew
from luthier.engine.draws import Draws
from luthier.engine.head import head_of
from luthier.engine.masters import Masters
from luthier.engine.precision import loss_scale_of
from luthier.engine.probe import best_device
from luthier.engine.recompute import Mode, Recomputing
from luthier.engine.sampling import GREEDY, Sampling
from luthier.engine.transfer import Late
from luthier.errors import DataError, LuthierError, is_shortage
from luthier.files import make_folder
from luthier.models import adapters, find, load, methods, quantized, save
from luthier.models.bottleneck import BottleneckModel
from luthier.records import Answer, Likelihood, Rejected, Row, Source, TokenizedExample, Turn, UpdateLoss
from luthier.reporting import Silent

Precision = Literal["bf16", "fp16", "fp32"]
Result = TypeVar("Result")
# The plain twin and the fast path may differ by this much (relative, on the loss of one row) before the fast one is given up.
CHECK_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
# Rows of one micro-batch when the held-out loss is measured; no gradients are kept, so there is room.
EVALUATION_BATCH = 32
ANY_LENGTH = tokens.How(max_length=sys.maxsize)


class Engine:
    """A model, its tokenizer, and how they are run. Made by `open` or around a model that is loaded already."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        share_prefixes: bool = True,
        side_by_side: bool = True,
        micro_batch_tokens: int = 4096,
        adam: dict[str, Any] | None = None,
        max_grad_norm: float = 1.0,
        attn_implementation: str = "auto",
        optim: str = "adamw",
        rates: dict[str, float] | None = None,
        neftune_noise_alpha: float = 0.0,
        label_smoothing: float = 0.0,
        gradient_checkpointing: Mode = "off",
        compile: bool = False,
        plain_reason: str = "",
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.micro_batch_tokens, self.max_grad_norm = micro_batch_tokens, max_grad_norm
        # A shared prefix has one dropout mask (or noise) for all rows, which is another estimator: beside it nothing is shared.
        drops = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())
        self._drops = drops or neftune_noise_alpha > 0 or tuners.draw(model)
        self.share_prefixes = share_prefixes and not self._drops
        self.sharing = ""  # what the rows of the last update shared, or why nothing
        self.notes: list[str] = []  # what someone who reads the log should know about how this model runs
        self.plain_reason = plain_reason  # why the fast path is not used; "" when it is
        self._adam_settings: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0} | (adam or {})
        self.optim, self._rates = optim, rates or {}
        # Made when training begins: a model that only answers has no use for them.
        self._masters: Masters | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self.loss_scale = loss_scale_of(update.causal_model(model).dtype)
        self._give_back: Callable[[], None] = lambda: None
        self.crew: Crew | None = None  # the other ranks, where several train this model; of an update's loss this one has a part
        self.part = 1.0
        self.plain_attention = attention.plain_name(update.causal_model(model).config._attn_implementation)
        self.head, self.draws = head_of(update.causal_model(model)), Draws()
        self.head.label_smoothing = label_smoothing
        noise.install(update.causal_model(model), neftune_noise_alpha, self.draws)
        self._longest_exact = hindrance.longest_exact(model)
        self._enter_fast_path(attn_implementation, compile)
        # What layers of other methods keep from call to call is not known.
        alone = not side_by_side or bool(self.plain_reason) or not tuners.only_lora(self.model)
        self.lanes = None if alone else lanes.that_pay(self.model, self.device)
        self.recomputing = Recomputing(self.model, gradient_checkpointing)

    @classmethod
    def open(
        cls,
        model: str,
        *,
        lora: dict[str, Any] | None = None,
        adapter: str | None = None,
        full: bool = False,
        method: str | None = None,
        settings: dict[str, Any] | None = None,
        seed: int = 0,
        precision: Precision = "fp32",
        device: str = "auto",
        compile: bool = False,
    ) -> "Engine":
        """Load a model by its catalog name, hub id or folder, with a new LoRA adapter (`lora`: PEFT's names) or a trained one,
        or (`full`) with all of its own weights trained, or by any `method` with the `settings` of its section."""
        folder = find.find(model, Silent())
        tokenizer = load.load_tokenizer(folder)
        device = best_device() if device == "auto" else device
        if method is not None:
            asked = methods.settings_of(model, method, settings or {}, precision, seed)
            base = quantized.load_model(folder, precision, device, quantized.quantization_of(asked, precision))
            return cls(methods.add(base, asked, (), tokenizer), tokenizer, compile=compile)
        loaded = load.load_model(folder, precision, device)
        if adapter is not None:
            loaded = adapters.load_adapter(loaded, Path(adapter), trainable=True)
        elif lora is not None:
            loaded = methods.add(loaded, methods.settings_of(model, "lora", lora, precision, seed))
        else:
            loaded.requires_grad_(full)
        return cls(loaded, tokenizer, compile=compile)

    def tokenize(self, rows: list[dict[str, Any]]) -> list[TokenizedExample]:
        """Rows in any known format as tokens with their mask. Raises DataError for the first row that cannot be trained."""
        return [example for number, row in enumerate(rows, start=1) for example in self._tokenize_row(number, row)]

    def _tokenize_row(self, number: int, row: dict[str, Any]) -> tuple[TokenizedExample, ...]:
        how = How(format="auto", columns={}, strict=True, tree_paths="best")
        built = next(build([Row(row, "", Source("rows", number))], how, "rows").built)
        result = tokens.tokenize(built.conversation, self.tokenizer, ANY_LENGTH) if isinstance(built, Built) else built
        if isinstance(result, Rejected):
            raise DataError(result.detail, where=str(result.source), next_step="mend the row, or leave it out")
        return result.examples

    def forward_backward(self, examples: list[TokenizedExample], *, row_losses: bool = False) -> UpdateLoss:
        """Loss and gradients of one update: one mean over all trained tokens of `examples`, however they are cut.

        With `row_losses` the mean loss of each example is given too. Where the memory is not enough the same update is run again with
        a smaller `micro_batch_tokens`, which then stays. Raises OutOfMemory where one row alone does not fit.
        """
        if self.crew:
            return self.crew.forward_backward(self, examples, row_losses)
        return self.forward_backward_here(examples, row_losses)

    def forward_backward_here(self, examples: list[TokenizedExample], row_losses: bool) -> UpdateLoss:
        """The same by this process alone; of an update of several ranks its part."""
        return self._fitting(lambda: self._forward_backward(examples, row_losses), examples, learns=True)

    def _forward_backward(self, examples: list[TokenizedExample], row_losses: bool) -> UpdateLoss:
        step = self._begin(examples)
        sums = [0.0] * len(examples) if row_losses else None
        if self.plain_reason:
            loss = reference.forward_backward(self.model, examples, sums, self._scale, self.draws, self.head.label_smoothing)
            executed_tokens = step.logical_tokens
            executed_tokens += virtual.run_tokens(self.model) * len(examples)
        else:
            total = update.Sums(torch.zeros((), device=self.device), sums)
            loss = update.forward_backward(self.model, self.head, step, total, self._scale, self.draws, self._side)
            executed_tokens = step.executed_tokens + virtual.run_tokens(self.model)
        means = None if sums is None else [total / example.trained_tokens for total, example in zip(sums, examples, strict=True)]
        return UpdateLoss(loss, step.logical_tokens, executed_tokens, step.trained_tokens, means)

    def forward_backward_judged(self, examples: list[TokenizedExample], together: list[list[int]], loss_of: judged.LossOf) -> UpdateLoss:
        """Loss and gradients of one update whose loss is made of the log-probability of each example (judged.py).

        `together` are the places of the examples that the loss compares; each example stands in one group. Memory: as forward_backward.
        """
        if self.crew:
            return self.crew.forward_backward_judged(self, examples, together, loss_of)
        return self.forward_backward_judged_here(examples, together, loss_of)

    def forward_backward_judged_here(self, examples: list[TokenizedExample], together: list[list[int]], loss_of: judged.LossOf) -> UpdateLoss:
        """The same by this process alone; of an update of several ranks its part."""
        return self._fitting(lambda: self._forward_backward_judged(examples, together, loss_of), examples, together, learns=True)

    def _forward_backward_judged(self, examples: list[TokenizedExample], together: list[list[int]], loss_of: judged.LossOf) -> UpdateLoss:
        step = self._begin(examples, together)
        virtual_tokens = virtual.run_tokens(self.model)
        if self.plain_reason:
            loss = reference.forward_backward_judged(self.model, examples, together, loss_of, self._scale, self.draws)
            executed_tokens = step.logical_tokens + virtual_tokens * len(examples)
        else:
            loss = judged.forward_backward(self.model, self.head, step, loss_of, self._scale, self.draws, self._side)
            executed_tokens = step.executed_tokens + virtual_tokens
        return UpdateLoss(loss, step.logical_tokens, executed_tokens, step.trained_tokens)

    def log_probabilities(self, examples: Sequence[TokenizedExample]) -> list[float]:
        """The log-probability, in nats, of the trained tokens of each example; nothing is learned and no mode is left changed."""
        return [value for found in self.in_batches(self._log_probabilities, examples) for value in found]

    def in_batches(self, work: Callable[[list[TokenizedExample]], Result], examples: Sequence[TokenizedExample]) -> list[Result]:
        """What `work` gives for batch after batch of `examples`; nothing is learned and no mode is left changed. Memory: as forward_backward."""
        found: list[Result] = []
        with self._evaluating(), torch.no_grad():
            for start in range(0, len(examples), EVALUATION_BATCH):
                batch = list(examples[start : start + EVALUATION_BATCH])
                self.check_length(max(len(example.token_ids) for example in batch))
                found.append(self._fitting(partial(work, batch), batch))
        return found

    def _log_probabilities(self, batch: list[TokenizedExample]) -> list[float]:
        if self.plain_reason:
            return [-float(reference.loss_sum(self.model, example)) for example in batch]
        return judged.log_probabilities(self.model, self.head, self.lay_out(batch, None))

    def likelihoods(self, examples: Sequence[TokenizedExample], on_rows: Callable[[int], None] = lambda rows: None) -> list[Likelihood]:
        """How likely the trained tokens of each example are; nothing is learned. `on_rows(n)` is told how many are done."""
        found: list[Likelihood] = []
        with self._evaluating(), torch.no_grad():
            for batch in likelihood.batches(examples):
                self.check_length(max(len(example.token_ids) for example in batch))
                found += self._fitting(partial(self._likelihoods, batch), batch)
                on_rows(len(found))
        return found

    def _likelihoods(self, batch: list[TokenizedExample]) -> list[Likelihood]:
        if self.plain_reason:
            return [likelihood.plain(self.model, example) for example in batch]
        return likelihood.of_step(self.model, self.head, self.lay_out(batch, None))

    def lay_out(self, examples: list[TokenizedExample], together: Sequence[Sequence[int]] | None, budget: int = 0, *, learns: bool = False) -> Step:
        """Cut for `budget` tokens at once, or else for as many as have been enough so far; what is learned from for all lanes."""
        for example in examples:
            if not any(example.trained[1:]):
                raise DataError("no token after its first one is trained", where=str(example.source), next_step="leave the row out")
        shared = self.share_prefixes and not self.plain_reason
        lane_count = self.lanes.count if self.lanes and learns else 1
        budget = budget or self.micro_batch_tokens
        return lay_out(examples, micro_batch_tokens=budget, share_prefixes=shared, together=together, lanes=lane_count)

    def _fitting(
        self, work: Callable[[], Result], rows: list[TokenizedExample], together: Sequence[Sequence[int]] | None = None, *, learns: bool = False
    ) -> Result:
        """What `work` gives; where the memory is not enough for it, of the same work in smaller micro-batches, which stay."""
        restore_draws = shortage.random_state(self.device)
        # The masters are made here at the latest: before the first gradient comes, which they take.
        gathered = learns and any(weight.grad is not None for weight in self.masters.weights.values())
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not is_shortage(error):
                    raise
            # Not above, where the error would still hold all that it failed with.
            self._forget_attempt(learns)
            if gathered:
                raise shortage.beside_gradients(rows)
            if self.crew and (self.crew.sharding or self.crew.team):
                raise shortage.of_shards(rows)
            alone = bool(self.plain_reason)
            cut = partial(self.lay_out, rows, together, learns=learns)
            smaller = 0 if alone else shortage.smaller_budget(cut, self.micro_batch_tokens)
            if not smaller:
                units = [[rows[place] for place in group] for group in together or [[place] for place in range(len(rows))]]
                raise shortage.of_one_row(max(units, key=lambda unit: sum(row.tokens for row in unit)))
            self.micro_batch_tokens = smaller
            restore_draws()

    def _forget_attempt(self, learns: bool) -> None:
        """Drop what a failed attempt left: its gradients, and what layers keep for those that are called after them."""
        if learns:
            self.model.zero_grad(set_to_none=True)
            self.masters.forget_gradients()
        shortage.collect()
        if not self.plain_reason:
            training = self.model.training
            self.model.eval()
            update.trace(self.model)
            if self.lanes:
                self.lanes.run(lambda lane: update.trace(self.model))
            self.model.train(training)

    def _begin(self, examples: list[TokenizedExample], together: list[list[int]] | None = None) -> Step:
        """Lay an update out, and make ready to train it."""
        self.check_length(max(len(example.token_ids) for example in examples))
        step = self.lay_out(examples, together, learns=True)
        self.sharing = "none, as one dropout mask or noise would serve all rows" if self._drops and not self.plain_reason else step.sharing
        self.model.train()
        return step

    def optimizer_step(self, learning_rate: float) -> float:
        """Clip, update, forget the gradients. Returns the gradient norm before clipping; nothing is updated where it is not finite."""
        norm_of = self.crew.begin_step(self, learning_rate) if self.crew else optimizers.norm_of
        with shortage.telling("the optimizer's step", f"optim: {self.optim}", "optim: adamw_8bit, a lower rank, or a smaller model"):
            norm = optimizers.step(self.optimizer, learning_rate, self.max_grad_norm, self._scale, norm_of)
        if self.loss_scale:
            self.loss_scale.update(math.isfinite(norm))
        if math.isfinite(norm):
            self.masters.copy_back()
        self.masters.forget_gradients()
        return norm

    def quantize_frozen(self, examples: Sequence[TokenizedExample]) -> str:
        """Go on with the frozen layers' products in 8 bits (fp8.py). Gives a line that says how far the loss of `examples` is off."""
        exact, give_back = self.held_out_loss(examples), self._give_back
        give_weights_back = fp8.install(self.model)

        def give_all_back() -> None:
            give_weights_back()
            give_back()

        self._give_back = give_all_back
        rounded = self.held_out_loss(examples)
        gap = (rounded - exact) / exact
        return f"frozen_base: fp8: the loss of {len(examples)} rows is {rounded:.4f}, and {exact:.4f} without it (a gap of {gap:+.2%})"

    @property
    def reads_late(self) -> bool:
        """Whether `send_update` is of use: a GPU waits for the host wherever a number of it is read."""
        return self.device.type == "cuda" and not (self.plain_reason or self.crew or self.loss_scale) and bool(self.optimizer.defaults.get("fused"))

    def send_update(self, examples: list[TokenizedExample], learning_rate: float) -> Callable[[], tuple[UpdateLoss, float]]:
        """forward_backward and optimizer_step, asked of a GPU without waiting for it. The call that is returned waits for this update's
        loss and gradient norm; where one of them is not finite the GPU has updated nothing."""
        step, total = self._fitting(lambda: self._sent(examples), examples, learns=True)
        mean, executed_tokens = total / step.trained_tokens, step.executed_tokens + virtual.run_tokens(self.model)
        with shortage.telling("the optimizer's step", f"optim: {self.optim}", "optim: adamw_8bit, a lower rank, or a smaller model"):
            norm = Late(optimizers.step_unread(self.optimizer, learning_rate, self.max_grad_norm, mean))
        loss = Late(mean)
        self.masters.copy_back()
        self.masters.forget_gradients()
        return lambda: (UpdateLoss(float(loss), step.logical_tokens, executed_tokens, step.trained_tokens), float(norm))

    def _sent(self, examples: list[TokenizedExample]) -> tuple[Step, torch.Tensor]:
        step, sums = self._begin(examples), update.Sums(torch.zeros((), device=self.device))
        update.run_update(self.model, self.head, step, sums, 1.0, self.draws)
        return step, sums.total

    def price_of_checkpointing(self, examples: list[TokenizedExample]) -> float:
        """The share of time that gradient checkpointing adds to an update of `examples`. Nothing is learned."""

        def update_and_forget() -> None:
            self.forward_backward(examples)
            self.forget_gradients()

        return self.recomputing.price(update_and_forget)

    def forget_gradients(self) -> float:
        """Drop what an update gathered: nothing is learned from it. Gives NaN, the norm of nothing."""
        if self.crew:
            self.crew.order("forget")
        self.masters.forget_gradients()
        if self.loss_scale:
            self.loss_scale.lowered = False
        return math.nan

    def held_out_loss(self, examples: Sequence[TokenizedExample]) -> float:
        """Mean loss over the trained tokens of `examples`, in nats; nothing is learned and no mode is left changed."""
        self.check_length(max(len(example.token_ids) for example in examples))
        total = trained_tokens = 0.0
        with self._evaluating():
            for start in range(0, len(examples), EVALUATION_BATCH):
                batch = list(examples[start : start + EVALUATION_BATCH])
                total += self._fitting(partial(self._loss_of, batch), batch)
                trained_tokens += sum(sum(example.trained[1:]) for example in batch)
        return total / trained_tokens

    def _loss_of(self, batch: list[TokenizedExample]) -> float:
        return self._plain_loss(batch) if self.plain_reason else update.loss(self.model, self.head, self.lay_out(batch, None))

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Nothing is dropped meanwhile, and the weights are those that will be saved; the mode before comes back at the end."""
        training = self.model.training
        self.model.eval()
        try:
            with self._averaged():
                yield
        finally:
            self.model.train(training)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The weights that training has found: for a schedule-free optimizer others than those that it goes on from."""
        with optimizers.averaged(self._optimizer) as others:
            if others:
                self.masters.copy_back()
            yield
        if others:
            self.masters.copy_back()

    @torch.no_grad()
    def _plain_loss(self, examples: list[TokenizedExample]) -> float:
        return sum(float(reference.loss_sum(self.model, example)) for example in examples)

    def answer(
        self,
        prompts_ids: list[list[int]],
        *,
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        stop: str | Sequence[str] = (),
        on_answers: Callable[[int], None] = lambda answers: None,
    ) -> list[str]:
        """Answers to many prompts, without the stop string. One that nearly fills the context has a shorter answer, and the others have not."""
        return [one.text for one in self.answers(prompts_ids, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop, on_answers=on_answers)]

    def answers(
        self,
        prompts_ids: list[list[int]],
        *,
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        stop: str | Sequence[str] = (),
        on_answers: Callable[[int], None] = lambda answers: None,
        on_answer: Callable[[int, Answer], None] | None = None,
    ) -> list[Answer]:
        """The same with their lengths and how they ended. `on_answer(place, answer)` is told of each as soon as it has ended."""
        limits = [self._room_for(len(prompt), max_new_tokens) for prompt in prompts_ids]
        text = text_of(self.tokenizer, stop)

        def told(row: generate.Asked) -> Answer:
            return Answer(text.of(row.answer), len(row.answer), row.stopped)

        def on_row(place: int, row: generate.Asked) -> None:
            if on_answer is not None:
                on_answer(place, told(row))

        with self._evaluating():
            rows = generate.answer_rows(self.model, prompts_ids, self._how(sampling, text), limits, on_answers, on_row)
        return [told(row) for row in rows]

    def has_room(self, prompt_ids: list[int], new_tokens: int = 1) -> bool:
        """Whether an answer of so many tokens to this prompt ends inside the model's context."""
        return self.context is None or len(prompt_ids) + new_tokens <= self.context

    def stream(self, turns: list[Turn], *, max_new_tokens: int = 512, sampling: Sampling = GREEDY, stop: str | Sequence[str] = ()) -> Iterator[str]:
        """The answer to a conversation, piece by piece, as it is made. Nothing of a stop string is given out."""
        prompt = tokens.prompt_ids(turns, self.tokenizer)
        text = text_of(self.tokenizer, stop)
        limit = self._room_for(len(prompt), max_new_tokens)
        with self._evaluating():
            yield from text.pieces(generate.stream(self.model, prompt, self._how(sampling, text), limit))

    def _how(self, sampling: Sampling, text: Text) -> generate.How:
        return generate.How(frozenset(self.stop_ids), sampling, text.ended, plain=bool(self.plain_reason))

    def _room_for(self, prompt_tokens: int, max_new_tokens: int) -> int:
        """How many tokens an answer may have, so that it ends inside the model's context."""
        context = self.context
        if context is None:
            return max_new_tokens
        if prompt_tokens >= context:
            raise DataError(
                f"the prompt has {prompt_tokens:,} tokens and the model's context {context:,}: there is no room for an answer",
                where="prompt",
                next_step="shorten it, or begin a new conversation",
            )
        return min(max_new_tokens, context - prompt_tokens)

    def sample(
        self, messages: str | list[dict[str, str]], *, max_new_tokens: int = 256, sampling: Sampling = GREEDY, stop: str | Sequence[str] = ()
    ) -> str:
        """The answer to a question or to a list of messages; the likeliest words, unless `sampling` says otherwise."""
        rows = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        turns = [Turn(row["role"], row["content"]) for row in rows]
        return "".join(self.stream(turns, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop))

    def save_state(self, folder: str | Path, base_name: str = "") -> Path:
        """Save what was trained with the tokenizer: the adapter in PEFT's own format, or the whole model as Transformers reads it."""
        path = Path(folder)
        make_folder(path.parent)
        shared = self.crew and self.crew.sharding
        with self._averaged(), sharding.made_whole(self.model, trained=self.adapted) if shared else nullcontext():
            if not self.adapted:
                save.save_model(self.model, path, self.tokenizer, self.stop_ids)
                return path
            name = base_name or str(getattr(update.causal_model(self.model).config, "_name_or_path", ""))
            adapters.save_adapter(self.model, path, name, self.tokenizer)
        return path

    @property
    def masters(self) -> Masters:
        """What is trained, in fp32, by name."""
        if self._masters is None:
            self._masters = Masters(self.model)
        return self._masters

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        if self._optimizer is None:
            tables = groups.table_names(self.model, update.causal_model(self.model))
            found = groups.groups(self.masters.weights, tables, self._adam_settings["weight_decay"], self._rates)
            self._optimizer = optimizers.OPTIMIZERS[self.optim](found, self._adam_settings)
        return self._optimizer

    def require_optimizer(self) -> None:
        """Make the optimizer now. Raises ConfigError where it is not installed, or where a rate is for weights that are not there."""
        self._optimizer = self.optimizer

    @property
    def _side(self) -> update.SideBySide | None:
        return update.SideBySide(self.lanes, self.masters) if self.lanes else None

    @property
    def _scale(self) -> float:
        return self.part * (self.loss_scale.value if self.loss_scale else 1.0)

    @property
    def overflowed(self) -> bool:
        """Whether the last update was lost because fp16's loss scale was too high; it is lower now."""
        return self.loss_scale is not None and self.loss_scale.lowered

    @property
    def adapted(self) -> bool:
        """Whether an adapter is trained beside the model; if not, its own weights are."""
        return isinstance(self.model, PeftModel | BottleneckModel)

    @property
    def trained_parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @property
    def trained_line(self) -> str:
        """How much of the model is trained, in a line."""
        trained = sum(parameter.numel() for parameter in self.trained_parameters)
        # PEFT counts what lies two to a byte in a quantized base.
        of_peft = isinstance(self.model, PeftModel)
        of_all = self.model.get_nb_trainable_parameters()[1] if of_peft else sum(parameter.numel() for parameter in self.model.parameters())
        return f"trained: {trained:,} of {of_all:,} parameters ({100 * trained / of_all:.2f} %)"

    @property
    def device(self) -> torch.device:
        return update.device_of(self.model)

    @property
    def context(self) -> int | None:
        """How many tokens a row may have: as many as the model was made for, less the virtual ones; None where its config does not say."""
        tokens: int | None = getattr(update.causal_model(self.model).config, "max_position_embeddings", None)
        return tokens - virtual.tokens(self.model) if tokens else None

    @property
    def stop_ids(self) -> set[int]:
        """Tokens that end an answer: the tokenizer's, the chat template's and all of the model's generation settings."""
        configured = getattr(getattr(update.causal_model(self.model), "generation_config", None), "eos_token_id", None)
        listed = configured if isinstance(configured, list) else [configured]
        return {token for token in [*listed, self.tokenizer.eos_token_id, tokens.end_of_turn(self.tokenizer)] if token is not None}

    def _enter_fast_path(self, attn_implementation: str, compile: bool) -> None:
        model = update.causal_model(self.model)
        if attn_implementation != "auto":
            attention.set_plain(model, attn_implementation)
            self.plain_reason = f"attn_implementation: {attn_implementation} was asked for"
            return
        self.plain_reason = self.plain_reason or hindrance.of_parts(model) or virtual.hindrance(self.model) or tuners.hindrance(self.model)
        if self.plain_reason:
            return
        door = attention.DOORS.get(self.plain_attention, "luthier")
        model.set_attn_implementation(door)
        taken = model.config._attn_implementation == door
        self.plain_reason = hindrance.of_attention(self.model) if taken else "its attention cannot be replaced"
        if self.plain_reason:
            model.set_attn_implementation(self.plain_attention)
            return
        give_back_lora = lora.install(self.model, lambda: update.trace(self.model), self.draws)
        give_back_table = embedding.install(model.get_input_embeddings(), lambda weight: self.masters.gradient_of(weight))

        give_back_elementwise = elementwise.install_best(model, kernels.fused(self.device), self.notes.append, compile=compile)

        def give_back() -> None:
            give_back_lora()
            give_back_table()
            give_back_elementwise()

        self._give_back = give_back

    def check_length(self, longest: int) -> None:
        """Go on plainly where rows of so many tokens cannot run together."""
        longest += virtual.tokens(self.model)
        if not self.plain_reason and self._longest_exact is not None and longest > self._longest_exact:
            self.go_plain(f"its position encoding changes for rows of more than {self._longest_exact:,} tokens, and one has {longest:,}")

    def check(self, *examples: TokenizedExample, longest: int = 0) -> float:
        """Compare the fast path with the plain twin on a few rows, each twice in one micro-batch; where they differ the engine goes on plainly.

        `longest` is the length of the longest row that will come, if that is known. Returns the relative difference of the loss. In bf16 one
        short row may differ by 3 % through rounding alone, so several are wanted there.
        """
        self.check_length(longest)
        if self.plain_reason:
            return 0.0
        self.model.eval()
        twice = [*examples, *examples]
        fast, plain = self._fitting(partial(self._loss_unshared, twice), twice), 2 * self._plain_loss(list(examples))
        difference = abs(fast - plain) / max(abs(plain), 1e-6 * sum(sum(example.trained[1:]) for example in twice))
        dtype = update.causal_model(self.model).dtype
        if difference > CHECK_TOLERANCE.get(dtype, 2e-2):
            self.go_plain(f"the fast path's loss differs from the plain one's by {difference:.1%} on {examples[0].source}")
        return difference

    def _loss_unshared(self, examples: list[TokenizedExample]) -> float:
        return update.loss(self.model, self.head, lay_out(examples, micro_batch_tokens=self.micro_batch_tokens, share_prefixes=False))

    def go_plain(self, reason: str) -> None:
        """Give every forward back and go on with the plain twin."""
        self.plain_reason = reason
        self.recomputing.stop()  # it stands around the forwards that are given back
        self._give_back()
        self.recomputing.start()
        update.causal_model(self.model).set_attn_implementation(self.plain_attention)

    def losses_with_and_without_adapter(self, example: TokenizedExample) -> tuple[float, float]:
        """The loss of a row as the model is, and as its base has it."""
        trained = self.held_out_loss([example])
        with self.model.disable_adapter():
            return trained, self.held_out_loss([example])

    def require_trained_parameters(self) -> None:
        if not self.trained_parameters:
            raise LuthierError("nothing in this model is trained", where="engine", next_step="open it with lora={'r': 16}")
