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
from pathlib import Path
from typing import Any, Literal

import torch
from peft.utils.other import AuxiliaryTrainingWrapper

from luthier.config.settings import LoraSettings
from luthier.data import tokenize as tokens
from luthier.data.formats.build import Built, How, build
from luthier.engine import attention, generate, lora, reference, update
from luthier.engine.batches import lay_out
from luthier.engine.probe import best_device
from luthier.errors import DataError, LuthierError
from luthier.files import make_folder
from luthier.models import adapters, find, load
from luthier.records import Rejected, Row, Source, TokenizedExample, Turn, UpdateLoss
from luthier.reporting import Silent

Precision = Literal["bf16", "fp32"]
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
        micro_batch_tokens: int = 4096,
        adam: dict[str, Any] | None = None,
        max_grad_norm: float = 1.0,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.micro_batch_tokens, self.max_grad_norm = micro_batch_tokens, max_grad_norm
        # A shared prefix has one dropout mask for all rows, which is another estimator: beside dropout nothing is shared.
        dropout = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())
        self.share_prefixes = share_prefixes and not dropout
        self.plain_reason = ""  # why the fast path is not used; "" when it is
        self._adam_settings: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0} | (adam or {})
        self._adam: torch.optim.AdamW | None = None
        self._give_back: Callable[[], None] = lambda: None
        self._enter_fast_path()

    @classmethod
    def open(
        cls,
        model: str,
        *,
        lora: dict[str, Any] | None = None,
        adapter: str | None = None,
        seed: int = 0,
        precision: Precision = "fp32",
        device: str = "auto",
    ) -> "Engine":
        """Load a model by its catalog name, hub id or folder, with a new LoRA adapter (`lora`: PEFT's names) or a trained one."""
        folder = find.find(model, Silent())
        tokenizer = load.load_tokenizer(folder)
        loaded = load.load_model(folder, precision, best_device() if device == "auto" else device)
        if adapter is not None:
            loaded = adapters.load_adapter(loaded, Path(adapter), trainable=True)
        elif lora is not None:
            loaded = adapters.add_lora(loaded, **(LoraSettings().model_dump() | lora), seed=seed)
        return cls(loaded, tokenizer)

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

    def forward_backward(self, examples: list[TokenizedExample]) -> UpdateLoss:
        """Loss and gradients of one update: one mean over all trained tokens of `examples`, however they are cut."""
        step = lay_out(examples, micro_batch_tokens=self.micro_batch_tokens, share_prefixes=self.share_prefixes and not self.plain_reason)
        self.model.train()
        if self.plain_reason:
            loss = reference.forward_backward(self.model, examples)
            return UpdateLoss(loss, step.logical_tokens, step.logical_tokens, step.trained_tokens)
        loss = update.forward_backward(self.model, step)
        return UpdateLoss(loss, step.logical_tokens, step.executed_tokens, step.trained_tokens)

    def optimizer_step(self, learning_rate: float) -> float:
        """Clip, update, forget the gradients. Returns the gradient norm before clipping; nothing is updated where it is not finite."""
        adam = self.adam
        for group in adam.param_groups:
            group["lr"] = learning_rate
        norm = float(torch.nn.utils.clip_grad_norm_(self.trained_parameters, self.max_grad_norm))
        if norm == norm and norm != float("inf"):
            adam.step()
        adam.zero_grad(set_to_none=True)
        return norm

    def forget_gradients(self) -> float:
        """Drop what an update gathered: nothing is learned from it. Gives NaN, the norm of nothing."""
        self.adam.zero_grad(set_to_none=True)
        return math.nan

    def held_out_loss(self, examples: Sequence[TokenizedExample]) -> float:
        """Mean loss over the trained tokens of `examples`, in nats; nothing is learned and no mode is left changed."""
        training = self.model.training
        self.model.eval()
        total = trained_tokens = 0.0
        for start in range(0, len(examples), EVALUATION_BATCH):
            batch = list(examples[start : start + EVALUATION_BATCH])
            step = lay_out(batch, micro_batch_tokens=self.micro_batch_tokens, share_prefixes=self.share_prefixes and not self.plain_reason)
            total += self._plain_loss(batch) if self.plain_reason else update.loss(self.model, step)
            trained_tokens += step.trained_tokens
        self.model.train(training)
        return total / trained_tokens

    @torch.no_grad()
    def _plain_loss(self, examples: list[TokenizedExample]) -> float:
        return sum(float(reference.loss_sum(self.model, example)) for example in examples)

    def answer(self, prompts_ids: list[list[int]], *, max_new_tokens: int, on_answers: Callable[[int], None] = lambda answers: None) -> list[str]:
        """Greedy answers to many prompts. One that nearly fills the context has a shorter answer, and the others have not."""
        rooms = [self._room_for(len(prompt), max_new_tokens) for prompt in prompts_ids]
        training = self.model.training
        self.model.eval()
        decode = reference.answer if self.plain_reason else generate.answer
        answers = [""] * len(prompts_ids)
        done = 0
        for room in sorted(set(rooms), reverse=True):
            places = [place for place, one in enumerate(rooms) if one == room]

            def advance(answered: int, before: int = done) -> None:
                on_answers(before + answered)

            asked = [prompts_ids[place] for place in places]
            found = decode(self.model, asked, stop_ids=self.stop_ids, max_new_tokens=room, on_answers=advance)
            for place, ids in zip(places, found, strict=True):
                answers[place] = self.tokenizer.decode(ids, skip_special_tokens=True)
            done += len(places)
        self.model.train(training)
        return answers

    def has_room(self, prompt_ids: list[int], new_tokens: int = 1) -> bool:
        """Whether an answer of so many tokens to this prompt ends inside the model's context."""
        return self.context is None or len(prompt_ids) + new_tokens <= self.context

    def stream(self, turns: list[Turn], *, max_new_tokens: int = 512) -> Iterator[str]:
        """The answer to a conversation, piece by piece, as it is made."""
        self.model.eval()
        prompt = tokens.prompt_ids(turns, self.tokenizer)
        max_new_tokens = self._room_for(len(prompt), max_new_tokens)
        if self.plain_reason:
            ids = reference.answer(self.model, [prompt], stop_ids=self.stop_ids, max_new_tokens=max_new_tokens)[0]
            yield self.tokenizer.decode(ids, skip_special_tokens=True)
            return
        yield from self._pieces(generate.stream(self.model, prompt, stop_ids=self.stop_ids, max_new_tokens=max_new_tokens))

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

    def _pieces(self, new_ids: Iterator[int]) -> Iterator[str]:
        """Text as it grows; a character that is not whole yet waits for its last byte."""
        ids: list[int] = []
        said = ""
        for token in new_ids:
            ids.append(token)
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            if not text.endswith("\ufffd"):
                yield text[len(said) :]
                said = text
        if ids and (text := self.tokenizer.decode(ids, skip_special_tokens=True)) != said:
            yield text[len(said) :]

    def sample(self, messages: str | list[dict[str, str]], *, max_new_tokens: int = 256) -> str:
        """The greedy answer to a question or to a list of messages."""
        rows = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        return "".join(self.stream([Turn(row["role"], row["content"]) for row in rows], max_new_tokens=max_new_tokens))

    def save_state(self, folder: str | Path, base_name: str = "") -> Path:
        """Save what was trained, in PEFT's own format, with the tokenizer."""
        path = Path(folder)
        make_folder(path.parent)
        name = base_name or str(getattr(update.causal_model(self.model).config, "_name_or_path", ""))
        adapters.save_adapter(self.model, path, name, self.tokenizer)
        return path

    @property
    def adam(self) -> torch.optim.AdamW:
        if self._adam is None:
            self._adam = torch.optim.AdamW(self.trained_parameters, lr=0.0, **self._adam_settings)
        return self._adam

    @property
    def trained_parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @property
    def device(self) -> torch.device:
        return update.device_of(self.model)

    @property
    def context(self) -> int | None:
        """How many tokens the model was made for; None where its config does not say."""
        tokens: int | None = getattr(update.causal_model(self.model).config, "max_position_embeddings", None)
        return tokens or None

    @property
    def stop_ids(self) -> set[int]:
        """Tokens that end an answer: the tokenizer's, the chat template's and all of the model's generation settings."""
        configured = getattr(getattr(update.causal_model(self.model), "generation_config", None), "eos_token_id", None)
        listed = configured if isinstance(configured, list) else [configured]
        return {token for token in [*listed, self.tokenizer.eos_token_id, tokens.end_of_turn(self.tokenizer)] if token is not None}

    def _enter_fast_path(self) -> None:
        model = update.causal_model(self.model)
        self.plain_reason = fast_path_hindrance(model)
        if self.plain_reason:
            return
        model.set_attn_implementation(attention.NAME)
        if model.config._attn_implementation != attention.NAME:
            self.plain_reason = "its attention cannot be replaced"
            return
        self._give_back = lora.install(self.model)

    def check(self, example: TokenizedExample) -> float:
        """Compare the fast path with the plain twin on one row; where they differ the engine goes on plainly and says why.

        Returns the relative difference of the loss.
        """
        if self.plain_reason:
            return 0.0
        self.model.eval()
        step = lay_out([example], micro_batch_tokens=self.micro_batch_tokens, share_prefixes=False)
        fast, plain = update.loss(self.model, step), self._plain_loss([example])
        difference = abs(fast - plain) / max(abs(plain), 1e-6 * step.trained_tokens)
        dtype = update.causal_model(self.model).dtype
        if difference > CHECK_TOLERANCE.get(dtype, 2e-2):
            self.go_plain(f"the fast path's loss differs from the plain one's by {difference:.1%} on {example.source}")
        return difference

    def go_plain(self, reason: str) -> None:
        """Give every forward back and go on with the plain twin."""
        self.plain_reason = reason
        self._give_back()
        update.causal_model(self.model).set_attn_implementation("sdpa")

    def require_trained_parameters(self) -> None:
        if not self.trained_parameters:
            raise LuthierError("nothing in this model is trained", where="engine", next_step="open it with lora={'r': 16}")


HINDRANCES = {
    # name in the config          what it means
    "attention_dropout": "part of the attention is dropped while it trains",
    "attn_pdrop": "part of the attention is dropped while it trains",
    "attention_probs_dropout_prob": "part of the attention is dropped while it trains",
    "attn_logit_softcapping": "its attention is capped",
    "final_logit_softcapping": "its logits are capped",
    "v_head_dim": "its values have another width than its keys",
}


def fast_path_hindrance(model: Any) -> str:
    """Why the fast path would be wrong for this causal language model, or ""."""
    config = model.config
    for name, what in HINDRANCES.items():
        if getattr(config, name, None):
            return f"{what} ({name}: {getattr(config, name)})"
    for name in ("logits_scaling", "logit_scale"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            return f"its logits are scaled ({name}: {getattr(config, name)})"
    head = model.get_output_embeddings()
    if isinstance(head, AuxiliaryTrainingWrapper):  # trained, or some rows of it: PEFT stands around the same matrix
        head = head.original_module
    if type(head) is not torch.nn.Linear or head.bias is not None:
        return "its head is not one plain matrix"
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention"}
    if kinds:
        return f"its layers use {', '.join(sorted(kinds))}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return f"it attends in a sliding window of {config.sliding_window} tokens"
    return ""
