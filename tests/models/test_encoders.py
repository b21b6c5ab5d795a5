"""Sentence encoders and cross-encoders: the vectors that their makers define, in whatever batch; wrong folders say so."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from luthier.errors import CallError, ModelError
from luthier.models import encoders
from luthier.rag import embedding, indexing
from luthier.rag.finding import open_finder
from luthier.rag.index import open_index
from luthier.rag.splitting import Split

TEXTS = ["a guitar", "the quick brown fox jumps over the lazy dog while boxing wizards jump", "x", "address in Itasca"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A random BERT of one layer, with the tiny model's tokenizer."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoders") / "bert"
    config = BertConfig(vocab_size=500, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def variant(bert: Path, to: Path, **files: object) -> Path:
    shutil.copytree(bert, to)
    for name, content in files.items():
        path = to / name.replace("__", "/").replace("_json", ".json")
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
    return to


def by_hand(folder: Path, text: str, pooling: str) -> np.ndarray:
    from transformers import AutoModel, AutoTokenizer

    with torch.inference_mode():
        inputs = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt", truncation=True, max_length=64)
        states = AutoModel.from_pretrained(folder)(**inputs).last_hidden_state[0]
    vector = states.mean(0) if pooling == "mean" else states[0]
    return (vector / vector.norm()).numpy()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_vectors_are_pooled_as_the_folder_says_and_do_not_depend_on_the_batch(pooling: str, bert: Path, tmp_path: Path) -> None:
    folder = variant(bert, tmp_path / "v", **{"1_Pooling__config_json": {"pooling_mode_cls_token": pooling == "cls"}})
    encoder = encoders.load_encoder(folder)
    found = encoder.vectors(TEXTS * 20)
    assert found.shape == (80, 32)
    for text, vector in zip(TEXTS, found, strict=False):
        assert np.allclose(vector, by_hand(bert, text, pooling), atol=1e-5)
    assert np.allclose(found[:4], found[4:8], atol=1e-5)


def test_questions_have_the_words_before_them_that_the_folder_asks_for(bert: Path, tmp_path: Path) -> None:
    folder = variant(bert, tmp_path / "p", config_sentence_transformers_json={"prompts": {"query": "query: ", "document": ""}})
    made = embedding.embedder_of(str(folder))
    assert np.allclose(made.questions(["a guitar"]), made.documents(["query: a guitar"]), atol=1e-6)
    assert not np.allclose(made.questions(["a guitar"]), made.documents(["a guitar"]), atol=1e-3)


def test_an_index_of_an_encoder_refuses_the_default_and_finds_by_its_own(bert: Path, documents_of_three: Path, tmp_path: Path) -> None:
    made = embedding.embedder_of(str(bert))
    indexing.build([("docs", documents_of_three)], tmp_path / "index", made, Split())
    finder = open_finder(open_index(tmp_path / "index"))
    assert finder.find("Boston", 1).found[0].passage.document == "docs/Boston.txt"
    with pytest.raises(CallError, match=r"was made with the embedder .*bert, and this is wordllama"):
        open_finder(open_index(tmp_path / "index"), embedder="wordllama")


@pytest.fixture
def documents_of_three(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    for town in ("Boston", "Elgin", "Peoria"):
        (tmp_path / "docs" / f"{town}.txt").write_text(f"{town} has a shop.", encoding="utf-8")
    return tmp_path / "docs"


def test_a_cross_encoder_scores_each_text_as_by_itself(bert: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    config = BertConfig.from_pretrained(bert)
    config.num_labels = 1
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(bert).save_pretrained(tmp_path)
    cross = encoders.load_cross_encoder(tmp_path)
    together = cross.scores("a guitar", [text[:40] for text in TEXTS])
    assert together == pytest.approx([cross.scores("a guitar", [text[:40]])[0] for text in TEXTS], abs=1e-5)
    assert len(set(together)) == len(TEXTS)


def test_folders_that_are_no_encoder_say_so(bert: Path, tiny_model: Path, tmp_path: Path) -> None:
    other = variant(bert, tmp_path / "max", **{"1_Pooling__config_json": {"pooling_mode_max_tokens": True}})
    with pytest.raises(ModelError, match="in a way that is not known here"):
        encoders.load_encoder(other)
    dense = variant(bert, tmp_path / "dense", modules_json=[{"type": f"sentence_transformers.models.{step}"} for step in ("Transformer", "Dense")])
    with pytest.raises(ModelError, match=r"not known here \(Dense\)"):
        encoders.load_encoder(dense)
    with pytest.raises(ModelError, match=r"holds no values for|no encoder that can be loaded"):
        encoders.load_cross_encoder(bert)
    broken = variant(bert, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError):
        embedding.embedder_of(str(broken))
