"""What a request's own wishes do to the logits of its next token: penalties, biases, and a schema that the answer keeps to."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Set
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.engine.continuous import Bend
from luthier.serve.faults import Fault, bad_request

INSTALL = 'pip install "luthier[serve]"'
LONGEST_SCHEMA = 64_000  # characters


def penalties(frequency: float, presence: float) -> Bend:
    """logit - count * frequency - (count > 0) * presence, of the tokens of the answer so far (OpenAI's definition)."""

    def bend(logits_V: Tensor, answer: list[int]) -> Tensor:
        counts = Counter(answer)
        tokens = torch.tensor(list(counts), device=logits_V.device, dtype=torch.long)
        taken = torch.tensor([count * frequency + presence for count in counts.values()], device=logits_V.device)
        return logits_V.index_add(0, tokens, -taken) if counts else logits_V

    return bend


def biases(by_token: Mapping[str, float], words: int) -> Bend:
    """Numbers that are added to the logits of some tokens, given by their ids."""
    try:
        tokens = [int(token) for token in by_token]
    except ValueError as error:
        raise bad_request("logit_bias", "names something that is no token id", 'give ids as text: {"1734": -100}') from error
    if unknown := [token for token in tokens if not 0 <= token < words]:
        raise bad_request("logit_bias", f"names token {unknown[0]}, and the model has {words}", "give ids of this model's tokenizer")
    added = torch.tensor(list(by_token.values()))
    places = torch.tensor(tokens, dtype=torch.long)
    return lambda logits_V, answer: logits_V.index_add(0, places.to(logits_V.device), added.to(logits_V))


class Grammars:
    """JSON schemas as masks over a tokenizer's words (llguidance)."""

    def __init__(self, tokenizer: Any, words: int, stop_ids: Set[int]) -> None:
        self.tokenizer, self.words, self.stop_ids = tokenizer, words, stop_ids
        self._known: Any = None

    def bend(self, schema: Mapping[str, Any]) -> Bend:
        """Words that would lead out of the schema cannot be said. Raises a Fault for a schema that cannot be kept to."""
        try:
            import llguidance
            import llguidance.hf
        except ImportError as error:
            raise Fault(501, "not_installed", f"answers of a schema need llguidance on the server: {INSTALL}", "response_format") from error
        text = json.dumps(schema)
        if len(text) > LONGEST_SCHEMA:
            raise bad_request("response_format", f"its schema has {len(text):,} characters, and {LONGEST_SCHEMA:,} are allowed", "a smaller schema")
        if self._known is None:
            self._known = llguidance.hf.from_tokenizer(self.tokenizer, self.words, eos_token=sorted(self.stop_ids))
        matcher = llguidance.LLMatcher(self._known, _grammar(text))
        if matcher.is_error():
            raise bad_request("response_format", f"the schema cannot be kept to ({matcher.get_error()[:200]})", "a simpler schema")
        taken = 0

        def bend(logits_V: Tensor, answer: list[int]) -> Tensor:
            nonlocal taken
            for token in answer[taken:]:
                matcher.consume_token(token)
            taken = len(answer)
            bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8), count=self.words, bitorder="little")
            return logits_V.masked_fill(torch.from_numpy(bits == 0).to(logits_V.device), -torch.inf)

        return bend


@lru_cache(maxsize=64)
def _grammar(schema: str) -> str:
    import llguidance

    grammar: str = llguidance.LLMatcher.grammar_from_json_schema(schema)
    return grammar


def together(bends: list[Bend]) -> Bend | None:
    """One after the other."""
    if not bends:
        return None

    def bend(logits_V: Tensor, answer: list[int]) -> Tensor:
        for one in bends:
            logits_V = one(logits_V, answer)
        return logits_V

    return bend


def guarded(bend: Bend, failed: Callable[[Exception], None]) -> Bend:
    """A bend whose fault ends its own request and no other's."""

    def guard(logits_V: Tensor, answer: list[int]) -> Tensor:
        try:
            return bend(logits_V, answer)
        except Exception as error:
            failed(error)
            return logits_V

    return guard
