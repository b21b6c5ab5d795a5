"""The tokenizer that a run trains with: the model's own, an earlier run's or another, with the tokens that were added and its template."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from luthier.config.load import Config
from luthier.errors import ConfigError, ModelError
from luthier.models import alignment, load, vocabulary

TOKENIZER_FILE = "tokenizer.json"


def open_tokenizer(config: Config, folder: Path, say: Callable[[str], None] = lambda line: None, earlier: Path | None = None) -> Any:
    """The run's tokenizer for the model in `folder`, checked against the model before any weights are loaded.

    `earlier` is the adapter folder of the run that this one goes on from (init_from). Raises ModelError where the model's own files do
    not belong together, ConfigError where the settings ask for what cannot be trained. `say` gets what is only odd.
    """
    asked, beside = config.settings.tokenizer, config.file.parent
    # The usual case: the model's own as it is, which is read once.
    as_it_is = earlier is None and asked.path is None and not asked.add_special_tokens and config.settings.template == "auto"
    own = load.load_tokenizer(folder, say=say) if as_it_is else load.load_tokenizer(folder)
    for note in alignment.check_alignment(own, folder):
        say(note)
    if as_it_is:
        return own
    if earlier is not None and (earlier / TOKENIZER_FILE).is_file():
        return _of_earlier(config, load.load_tokenizer(earlier))
    source = folder if asked.path is None else _other(config)
    tokenizer = load.load_tokenizer(source, config.settings.template, beside, say, asked.add_special_tokens)
    if asked.path is not None:
        alignment.check_fits(tokenizer, source)
        tokenizer.model_max_length = min(tokenizer.model_max_length, own.model_max_length)
        _check_trainable(config, own, tokenizer)
    return tokenizer


def _other(config: Config) -> Path:
    folder = Path(config.beside(str(config.settings.tokenizer.path)))
    if not (folder / TOKENIZER_FILE).is_file():
        raise ModelError(
            f"tokenizer.path: holds no {TOKENIZER_FILE}",
            where=str(folder),
            next_step=f"luthier data tokenizer train FILES --to {folder}, or name another folder",
        )
    return folder


def _check_trainable(config: Config, own: Any, tokenizer: Any) -> None:
    settings = config.settings
    trained = not settings.freeze.embeddings if settings.method == "full" else bool(settings.lora.modules_to_save)
    if trained or not vocabulary.between(own, tokenizer).replaced:
        return
    ways_out = {
        "full": "freeze: {embeddings: false}",
        **dict.fromkeys(("lora", "dora", "qlora"), "add to lora: modules_to_save: [embed_tokens, lm_head]"),
    }
    raise ConfigError(
        f"another tokenizer needs an embedding and a head that are trained and saved, and method: {settings.method} leaves them frozen here",
        where=_where(config, "path"),
        next_step=f"{ways_out.get(settings.method, 'method: full, or method: lora with modules_to_save')}   (or take tokenizer out)",
    )


def _of_earlier(config: Config, tokenizer: Any) -> Any:
    """An adapter goes on with the tokenizer that it was trained with; other tokens would need other rows."""
    known = vocabulary.vocabulary_of(tokenizer)
    missing = [token for token in config.settings.tokenizer.add_special_tokens if token not in known]
    if missing:
        raise ConfigError(
            f"tokenizer.add_special_tokens: {missing[0]} is not a token of the adapter that init_from names",
            where=_where(config, "add_special_tokens"),
            next_step="take it out (the adapter goes on with its own tokens), or take init_from out",
        )
    if config.settings.tokenizer.path is not None:
        other = load.load_tokenizer(_other(config))
        if vocabulary.vocabulary_of(other).items() - known.items():
            raise ConfigError(
                "tokenizer: the adapter that init_from names was trained with another tokenizer",
                where=_where(config, "path"),
                next_step="take tokenizer out (the adapter goes on with its own), or take init_from out",
            )
    return tokenizer


def _where(config: Config, name: str) -> str:
    return config.given.get(f"tokenizer.{name}", f"{config.file}: tokenizer")
