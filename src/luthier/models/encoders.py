"""Models that read a text whole: sentence encoders (a text to a vector) and cross-encoders (a question and a text to one score)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from luthier.errors import ModelError
from luthier.models.load import without_bars

Pooling = Literal["mean", "cls"]
# Texts that run together, those of like length: padding stays small.
BATCH = 32
MOST_TOKENS = 512
# The steps of a sentence encoder that are run here (modules.json). Others change its vectors: a Dense layer, for one.
STEPS = ("Transformer", "Pooling", "Normalize")
OTHER_POOLING = ("pooling_mode_max_tokens", "pooling_mode_lasttoken", "pooling_mode_weightedmean_tokens")
NOT_LOADED = "name a folder or hub id with config.json, *.safetensors and a tokenizer"


@dataclass(frozen=True, slots=True)
class Encoder:
    """A sentence encoder as sentence-transformers stores it. `prompts` stand before a question or a document where its makers say so."""

    model: Any
    tokenizer: Any
    pooling: Pooling
    most_tokens: int
    prompts: dict[str, str]

    @property
    def dimensions(self) -> int:
        return int(self.model.config.hidden_size)

    def vectors(self, texts: Sequence[str], kind: Literal["query", "document"] = "document") -> NDArray[np.float32]:
        """One row of length 1 for each text, `texts x dimensions`: the mean of its tokens' last hidden states (Reimers 2019,
        arXiv:1908.10084), or that of its first token, as the model was trained. What goes beyond the longest input is not read."""
        found = np.zeros((len(texts), self.dimensions), np.float32)
        before = self.prompts.get(kind, "")
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            found[places] = self._of_batch([before + texts[place] for place in places])
        return found

    def _of_batch(self, texts: list[str]) -> NDArray[np.float32]:
        inputs = self.tokenizer(texts, padding=True, truncation=True, max_length=self.most_tokens, return_tensors="pt")
        with torch.inference_mode():
            hidden_BTD = self.model(**inputs).last_hidden_state.float()
            counts_BT1 = inputs["attention_mask"][..., None].float()
            pooled_BD = hidden_BTD[:, 0] if self.pooling == "cls" else (hidden_BTD * counts_BT1).sum(1) / counts_BT1.sum(1).clamp(min=1)
            vectors: NDArray[np.float32] = torch.nn.functional.normalize(pooled_BD, dim=-1).numpy()
        return vectors


@dataclass(frozen=True, slots=True)
class CrossEncoder:
    """A model that scores a question and a text together: slower than vectors, and better."""

    model: Any
    tokenizer: Any

    def scores(self, question: str, texts: Sequence[str]) -> list[float]:
        """A score for each text: the larger, the more it has to do with the question (a logit)."""
        found: list[float] = []
        for start in range(0, len(texts), BATCH):
            pairs = [[question, text] for text in texts[start : start + BATCH]]
            inputs = self.tokenizer(pairs, padding=True, truncation="only_second", max_length=MOST_TOKENS, return_tensors="pt")
            with torch.inference_mode():
                found += self.model(**inputs).logits[:, -1].float().tolist()
        return found


def load_encoder(folder: Path) -> Encoder:
    """The sentence encoder in a folder. Raises ModelError where it cannot be loaded or pools in a way that is not known."""
    pooling = _read(folder / "1_Pooling" / "config.json")
    other = [name for name in OTHER_POOLING if pooling.get(name)] + [step for step in _steps(folder) if step not in STEPS]
    if other:
        problem = f"makes its vectors in a way that is not known here ({', '.join(other)})"
        raise ModelError(problem, where=str(folder), next_step="choose another encoder")
    model, tokenizer = _load(folder, AutoModel)
    longest = _read(folder / "sentence_bert_config.json").get("max_seq_length") or MOST_TOKENS
    most = min(int(longest), MOST_TOKENS, int(getattr(model.config, "max_position_embeddings", MOST_TOKENS)))
    said = _read(folder / "config_sentence_transformers.json").get("prompts") or {}
    prompts = {"query": said.get("query", ""), "document": said.get("document", said.get("passage", ""))}
    return Encoder(model, tokenizer, "cls" if pooling.get("pooling_mode_cls_token") else "mean", most, prompts)


def load_cross_encoder(folder: Path) -> CrossEncoder:
    """The cross-encoder in a folder. Raises ModelError where it cannot be loaded."""
    return CrossEncoder(*_load(folder, AutoModelForSequenceClassification))


def _load(folder: Path, kind: Any) -> tuple[Any, Any]:
    try:
        with without_bars():
            model, loading = kind.from_pretrained(
                str(folder), dtype=torch.float32, use_safetensors=True, local_files_only=True, trust_remote_code=False, output_loading_info=True
            )
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # what a wrong folder raises has no common class
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(f"is no encoder that can be loaded: {reason}", where=str(folder), next_step=NOT_LOADED) from error
    # A pooler that was not stored is not used here.
    if missing := sorted(name for name in loading["missing_keys"] if not name.startswith("pooler.")):
        raise ModelError(f"holds no values for {len(missing)} weights, {missing[0]} first", where=str(folder), next_step=NOT_LOADED)
    return model.eval().requires_grad_(False), tokenizer


def _steps(folder: Path) -> list[str]:
    """The class of each step after another, such as Pooling; none where the folder names none."""
    told = _json(folder / "modules.json")
    kinds = [str(one.get("type", "")) for one in told if isinstance(one, dict)] if isinstance(told, list) else []
    return [kind.rpartition(".")[2] for kind in kinds]


def _read(path: Path) -> dict[str, Any]:
    value = _json(path)
    return value if isinstance(value, dict) else {}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ModelError(f"is not whole JSON ({error})", where=str(path), next_step="download the encoder again") from error
