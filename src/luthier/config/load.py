"""Read luthier.yaml: line numbers kept, duplicate keys refused, every mistake named with its place and the nearest right thing."""

import difflib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from luthier.config import launch_rules, lora_rules, names, preference, training_rules
from luthier.config.data import SourceSettings
from luthier.config.methods import BLOCKS, METHODS
from luthier.config.settings import Settings
from luthier.errors import ConfigError

# Settings that name a file or a folder.
PATHS = {
    *("data.train", "data.eval", "data.replay_from", "evaluation.general", "model", "template", "tokenizer.path", "init_from", "output_dir"),
    "checks.json_schema",
}


@dataclass(frozen=True, slots=True)
class Config:
    """Settings as read: the values, the file they came from, which were given, and what the reader wants said."""

    settings: Settings
    file: Path
    given: dict[str, str]  # dotted name -> where it was given ("luthier.yaml:7" or "command line")
    notes: list[str]
    asked: Settings | None = None  # as they were, where an earlier adapter has decided some of them since
    says: "Config | None" = None  # of a run that goes on: the settings file it goes on with, as that was read

    def beside(self, path: str) -> str:
        """A path of the settings as seen from here: relative ones are relative to the file, as its author meant them."""
        return str(self.file.parent / Path(path).expanduser())


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML file and apply `section.name=value` overrides. Raises ConfigError with file, line and the nearest key."""
    file = Path(path)
    tree, places = read_tree(file)
    for override in overrides or []:
        _override(tree, places, override)
    notes: list[str] = []
    tree = _understand(tree, places, notes)
    settings = _validate(tree, places, file)
    _check_together(settings, places, file)
    return Config(settings, file, {name: place for name, place in places.items() if not _is_section(name)}, notes)


def settings_to_yaml(settings: Settings) -> str:
    """The settings as YAML, with every value that was not left at its default."""
    buffer = io.StringIO()
    yaml = YAML()
    yaml.dump(settings.model_dump(exclude_defaults=True), buffer)
    return buffer.getvalue()


def read_tree(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """A YAML file as plain values, and file:line of every dotted name in it."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError("no such file", where=str(file), next_step="luthier init DIR writes a project with a luthier.yaml") from error
    except IsADirectoryError as error:
        raise ConfigError("is a folder", where=str(file), next_step=f"luthier train {file / 'luthier.yaml'}") from error
    except PermissionError as error:
        raise ConfigError("cannot be read", where=str(file), next_step="mend the file's rights") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"byte {error.start} is not UTF-8", where=str(file), next_step="save the file as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", where=str(file), next_step="check the path") from error
    try:
        tree = YAML().load(text)
    except DuplicateKeyError as error:
        raise _yaml_error(file, error, "a key stands twice", "keep one of the two") from error
    except RecursionError as error:
        raise ConfigError("is nested too deep to be read", where=str(file), next_step="luthier init DIR shows the settings") from error
    except (MarkedYAMLError, YAMLError) as error:
        raise _yaml_error(file, error, "is not YAML", "check the indentation (spaces, not tabs) and the colons") from error
    if not isinstance(tree, CommentedMap):
        found = "it is empty" if tree is None else f"it holds {_kind(tree)}"
        raise ConfigError(f"settings are expected as `name: value` lines, and {found}", where=str(file), next_step="luthier init DIR shows one")
    places: dict[str, str] = {}
    return _plain(tree, "", file, places), places


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return "a list"
    return "a line of text" if isinstance(value, str) else "a single value"


def _yaml_error(file: Path, error: Exception, what: str, next_step: str) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    place = f"{file}:{mark.line + 1}" if mark else str(file)
    problem = (getattr(error, "problem", None) or str(error)).split("\n")[0]
    return ConfigError(f"{what} ({problem})", where=place, next_step=next_step)


def _plain(tree: CommentedMap, prefix: str, file: Path, places: dict[str, str]) -> dict[str, Any]:
    """A plain dict of the YAML tree; `places` learns file:line of every dotted name."""
    plain: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if key not in (tree.lc.data or {}):
            where = f"{file}:{tree.lc.line + 1}"
            raise ConfigError(f"{name} comes from a merge (<<), which is not read", where=where, next_step=f"write {key}: ... here")
        places[name] = f"{file}:{tree.lc.key(key)[0] + 1}"
        if isinstance(value, CommentedMap):
            plain[str(key)] = _plain(value, f"{name}.", file, places)
        else:
            # A section whose lines are all commented out is an empty one.
            plain[str(key)] = {} if value is None and _is_section(name) else _plain_value(value)
    return plain


def _plain_value(value: Any) -> Any:
    """ruamel's own kinds (scalars that remember their spelling) as Python's."""
    if isinstance(value, list):
        return [_plain_value(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain_value(item) for key, item in value.items()}
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def _override(tree: dict[str, Any], places: dict[str, str], override: str) -> None:
    name, equals, text = override.partition("=")
    where = f"command line: {override}"
    if not equals or not all(name.split(".")):
        raise ConfigError("an override is written section.name=value", where=where, next_step="for example training.learning_rate=1e-4")
    try:
        # "-" is standard input, and not a list of nothing.
        value = _plain_value(YAML(typ="safe").load(text)) if text not in ("", "-") else text
    except YAMLError as error:
        if name not in PATHS:
            raise ConfigError("the value is not YAML", where=where, next_step="put it in quotes") from error
        value = text  # a pattern such as *.gz means something else in YAML
    if (isinstance(value, dict) and not _takes_map(name)) or _is_section(name):
        raise ConfigError("an override sets one value, not a section", where=where, next_step=f"for example {_first_of(name)}=...")
    *sections, key = name.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{section} is not a section", where=where, next_step="luthier init DIR shows every setting")
    tree[key] = value
    places[name] = where


def _first_of(section: str) -> str:
    """A setting of a section, as an example."""
    inside = next((name for name in all_settings() if name.startswith(f"{section}.")), "training.learning_rate")
    return inside


def _understand(tree: dict[str, Any], places: dict[str, str], notes: list[str]) -> dict[str, Any]:
    """Replace the names of Transformers' TrainingArguments under `training:` by ours."""
    training = tree.get("training")
    if not isinstance(training, dict):
        return tree
    _check_evaluation_steps(training, places)
    _unpack_schedule(training, places, notes)
    _multiply_batch(tree, training, places, notes)
    if training.get("fp16") is True and training.get("bf16") is False:
        del training["bf16"], places["training.bf16"]  # by itself it asks for fp32
    for name in [name for name in training if name in names.MOVES]:
        _move(tree, training, name, places, notes)
    return tree


def _check_evaluation_steps(training: dict[str, Any], places: dict[str, str]) -> None:
    """Transformers evaluates every eval_steps only beside eval_strategy: steps, and has a default for them that is not ours."""
    for name in ("eval_strategy", "evaluation_strategy"):
        strategy, steps = training.get(name), training.get("eval_steps")
        where = places.get(f"training.{name}", name)
        if strategy == "no" and steps is not None:
            raise ConfigError(f"training.eval_steps has no effect with {name}: no", where=where, next_step="take one of the two out")
        if strategy == "steps" and steps is None:
            raise ConfigError(f"{name}: steps needs eval_steps", where=where, next_step="add eval_steps: 50 (updates between two evaluations)")


def _unpack_schedule(training: dict[str, Any], places: dict[str, str], notes: list[str]) -> None:
    """Transformers has a map of what belongs to a schedule; here each is a setting."""
    name = "training.lr_scheduler_kwargs"
    arguments = training.pop("lr_scheduler_kwargs", None) or {}
    where = places.get(name, name)
    for inside in [place for place in places if place == name or place.startswith(f"{name}.")]:
        del places[inside]
    try:
        settings = names.of_schedule(arguments)
    except names.Unusable as error:
        raise ConfigError(f"{name}: {error}", where=where, next_step="take it out, or write the nearest") from error
    for key, value in settings.items():
        if training.setdefault(key, value) != value:
            problem = f"{name} says {value!r} and training.{key} is {training[key]!r}"
            raise ConfigError(problem, where=where, next_step="keep one of the two")
        places.setdefault(f"training.{key}", where)
        notes.append(f"{name} -> training.{key}: {value}")


def _multiply_batch(tree: dict[str, Any], training: dict[str, Any], places: dict[str, str], notes: list[str]) -> None:
    given = [name for name in names.BATCH if name in training]
    if not given:
        return
    where = places[f"training.{given[0]}"]
    if places.get("training.batch_size", "").startswith("command line") and not where.startswith("command line"):
        for name in given:
            del training[name], places[f"training.{name}"]
        return
    if "batch_size" in training:
        raise ConfigError(f"batch_size and {given[0]} both say how large an update is", where=where, next_step="keep one of the two")
    factors = {name: training.pop(name, names.TRAINER_DEFAULT[name]) for name in names.BATCH}
    for name, value in factors.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{name} is {value!r}; a whole number from 1 is needed", where=where, next_step=f"{name}: 4")
    per_device, accumulation = factors.values()
    devices = _devices_of_batch(tree, where)
    training["batch_size"] = per_device * accumulation * devices
    places["training.batch_size"] = where
    for name in names.BATCH:
        places.pop(f"training.{name}", None)
    default = "" if "per_device_train_batch_size" in given else " (Transformers' default)"
    cut = f"{per_device} per device{default} x {accumulation} accumulated x {devices} device{'s' * (devices > 1)}"
    notes.append(f"training.batch_size: {training['batch_size']} examples per update = {cut}")


def _devices_of_batch(tree: dict[str, Any], where: str) -> int:
    """By how many devices a batch of one device is multiplied. Raises ConfigError where that is known only when the run starts."""
    devices, nodes = tree.get("devices", 1), tree.get("nodes", 1)
    if devices == "auto" or (isinstance(nodes, str) and ":" in nodes):
        problem = "a batch of each device, and how many devices there are is known only when the run starts: the result would depend on it"
        raise ConfigError(problem, where=where, next_step="training.batch_size: 32 (examples per update, over all devices)")
    counts = [number for number in (devices, nodes) if isinstance(number, int) and not isinstance(number, bool) and number > 0]
    return counts[0] * counts[1] if len(counts) == 2 else 1  # what is no number is refused when the tree is checked


def _move(tree: dict[str, Any], training: dict[str, Any], name: str, places: dict[str, str], notes: list[str]) -> None:
    move = names.MOVES[name]
    where = places.pop(f"training.{name}", str(name))
    try:
        value = move.read(training.pop(name))
    except names.Unusable as error:
        raise ConfigError(f"training.{name}: {error}", where=where, next_step="take the line out, or write the nearest") from error
    if not move.to:
        if name in names.NO_EFFECT:
            notes.append(f"training.{name} is not needed here: {names.NO_EFFECT[name]}")
        return
    if value is None:
        return
    *sections, key = move.to.split(".")
    target = tree
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            return  # not a section: said when the tree is checked
    if key in target and places.get(move.to, "").startswith("command line") and not where.startswith("command line"):
        return  # what is given in the call replaces what the file says, whatever it is called there
    if key in target and target[key] != value:
        raise ConfigError(f"training.{name} is {value!r} and {move.to} is {target[key]!r}", where=where, next_step="keep one of the two")
    target[key] = value
    places[move.to] = where
    if move.to != f"training.{name}":
        notes.append(f"training.{name} -> {move.to}: {value}")


def _validate(tree: dict[str, Any], places: dict[str, str], file: Path) -> Settings:
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise _first_mistake(error, places, file) from error


def _first_mistake(error: ValidationError, places: dict[str, str], file: Path) -> ConfigError:
    """The mistake to show: an unknown key before anything else, since it often explains the rest."""
    mistakes = sorted(error.errors(), key=lambda mistake: mistake["type"] != "extra_forbidden")
    mistake = mistakes[0]
    # Unions add the kind they tried ("int", "literal['auto']") to the place; list positions are numbers.
    path = [str(part) for part in mistake["loc"] if isinstance(part, str)]
    while len(path) > 1 and ".".join(path) not in places and mistake["type"] != "missing":
        path.pop()
    name = ".".join(path)
    where = _place(name, places, file)
    if inside := [other for other in mistakes if SourceSettings.__name__ in other["loc"][:-1]]:
        return _mistake_in_source(inside[0], name, where)
    if mistake["type"] == "extra_forbidden":
        return ConfigError(f"unknown setting {name!r}", where=where, next_step=_nearest(name))
    if mistake["type"] == "missing":
        return ConfigError(f"the setting {name!r} is missing", where=where, next_step=f"add {name}: ... (luthier init DIR shows an example)")
    if _is_section(name):
        problem = f"{name} is {_spelled(mistake['input'])}, and a section is expected: lines of `name: value`"
        return ConfigError(problem, where=where, next_step=f"for example {_first_of(name).replace('.', ': {')}: ...}}")
    meaning = f"{name}: {setting_field(name).description}"
    messages = [_in_words(other) for other in mistakes if other["loc"][: len(path)] == mistake["loc"][: len(path)]]
    return ConfigError(f"{name} is {_spelled(mistake['input'])}: {' or '.join(dict.fromkeys(messages))}", where=where, next_step=meaning)


def _mistake_in_source(mistake: Any, name: str, where: str) -> ConfigError:
    """A mistake inside one source of data.train."""
    key, numbers = mistake["loc"][-1], [part for part in mistake["loc"] if isinstance(part, int)]
    item, known = (f"{name}[{numbers[0]}]" if numbers else name), list(SourceSettings.model_fields)
    if mistake["type"] == "extra_forbidden":
        return ConfigError(f"unknown setting {key!r} in {item}", where=where, next_step=closest(key, known))
    if mistake["type"] == "missing":
        return ConfigError(f"{item} has no {key}", where=where, next_step=f"add {key}: ... (known are {', '.join(known)})")
    meaning = SourceSettings.model_fields[key].description if key in known else "our name of a column -> its name in this source"
    return ConfigError(f"{item}: {key} is {_spelled(mistake['input'])}: {_in_words(mistake)}", where=where, next_step=f"{key}: {meaning}")


def _place(name: str, places: Mapping[str, str], file: Path) -> str:
    """Where a setting was given; else the section around it, or something inside it."""
    while name:
        inside = (place for other, place in places.items() if other == name or other.startswith(f"{name}."))
        if place := next(inside, None):
            return place
        name = name.rpartition(".")[0]
    return str(file)


def _spelled(value: Any) -> str:
    """A value much as it stands in the file, cut where it is long."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) < 80 else f"{text[:77]}..."


def _in_words(mistake: Any) -> str:
    if mistake["type"] in ("string_too_short", "too_short"):
        return "should not be empty"
    text: str = mistake["msg"]
    return text.removeprefix("Input ").removeprefix("Value error, ")


def closest(key: str, known: list[str]) -> str:
    """The next step where a key is unknown: the one that is most like it, or all that there are."""
    near = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"


def _nearest(name: str) -> str:
    """The known name most like `name`, looked for in its own section first, then everywhere."""
    known = list(all_settings())
    pasted = [*names.MOVES, *names.BATCH]
    if name in known:
        return f"write it in its section: {name.replace('.', ':, and below it ')}: ..."
    section, _, key = name.rpartition(".")
    beside = {other.rpartition(".")[2]: other for other in known if other.rpartition(".")[0] == section}
    if close := difflib.get_close_matches(key, beside, n=1, cutoff=0.6):
        return f"did you mean {beside[close[0]]}?"
    if section == "training" and (close := difflib.get_close_matches(key, pasted, n=1, cutoff=0.75)):
        return f"did you mean training.{close[0]}?"
    elsewhere = {other.rpartition(".")[2]: other for other in known}
    if key in pasted:
        return f"write it below training: (training.{key})"
    if close := difflib.get_close_matches(key, elsewhere, n=1, cutoff=0.75):
        return f"did you mean {elsewhere[close[0]]}?"
    return f"known here: {', '.join(sorted(beside))}" if beside else "luthier init DIR shows every setting"


def all_settings(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[str]:
    """Every dotted name, sections included."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if section := _section(field.annotation):
            yield from all_settings(section, f"{prefix}{name}.")


def _section(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _is_section(name: str) -> bool:
    field = setting_field(name)
    return field is not None and _section(field.annotation) is not None


def _takes_map(name: str) -> bool:
    """Whether a setting is a map of its own (data.columns, device_map) rather than a section of settings."""
    field = setting_field(name)
    return field is not None and dict in {get_origin(kind) for kind in (field.annotation, *get_args(field.annotation))}


def setting_field(name: str) -> Any:
    """Pydantic's field of a dotted name; None where there is no such setting."""
    model: type[BaseModel] | None = Settings
    field = None
    for part in name.split("."):
        if model is None or part not in model.model_fields:
            return None
        field = model.model_fields[part]
        model = _section(field.annotation)
    return field


def _check_together(settings: Settings, places: Mapping[str, str], file: Path) -> None:
    """What is impossible or without effect only beside another setting."""

    def refuse(name: str, problem: str, next_step: str) -> None:
        raise ConfigError(problem, where=places.get(name, str(file)), next_step=next_step)

    method = METHODS.get(settings.method)
    if method is None:
        refuse("method", f"method {settings.method!r} is not in this version", _nearest_method(settings.method))
        return
    for block in BLOCKS - set(method.blocks):
        if place := next((place for name, place in places.items() if name == block or name.startswith(f"{block}.")), None):
            owner = next(name for name, other in METHODS.items() if block in other.blocks)
            problem = f"the block {block}: has no effect with method: {settings.method}"
            raise ConfigError(problem, where=place, next_step=f"take it out, or set method: {owner}")
    for name in type(settings.preference).model_fields:
        if f"preference.{name}" in places and name not in preference.READ[settings.objective]:
            readers = " or ".join(objective for objective, read in preference.READ.items() if name in read)
            refuse(
                f"preference.{name}", f"preference.{name} has no effect with objective: {settings.objective}", f"take it out, or objective: {readers}"
            )
    if settings.objective == "dpo" and settings.preference.label_smoothing and settings.preference.loss_type != "sigmoid":
        refuse(
            "preference.label_smoothing",
            f"preference.label_smoothing has no effect with loss_type: {settings.preference.loss_type}",
            "take it out, or loss_type: sigmoid",
        )
    if method.quantized_base:
        _check_quantized(settings, refuse)
    if settings.method == "full" and settings.freeze.embeddings and settings.tokenizer.add_special_tokens:
        refuse("freeze.embeddings", "the rows of added tokens would stay as they were drawn", "freeze: {embeddings: false}, or add no tokens")
    training = settings.training
    if "training.warmup_steps" in places and training.warmup_steps is not None and "training.warmup_ratio" in places:
        refuse("training.warmup_steps", "warmup_steps and warmup_ratio both say how long the rate rises", "keep one of the two")
    if settings.lora.numbers[2] and training.share_prefixes and "training.share_prefixes" in places:
        refuse(
            "training.share_prefixes",
            "a shared prefix has one dropout mask for all rows, so nothing is shared beside lora_dropout",
            "take one of the two out",
        )
    for name, problem, next_step in [
        *training_rules.clashes(settings, places),
        *lora_rules.clashes(settings, places),
        *launch_rules.clashes(settings, places),
    ]:
        refuse(name, problem, next_step)
    if settings.data.eval is None and settings.evaluation.every_steps:
        refuse("evaluation.every_steps", "every_steps has no effect with data.eval: null", "set data.eval: 5%, or take every_steps out")


def _nearest_method(asked: str) -> str:
    """What somebody means who asks for this method: one by another spelling, or a type of PEFT."""
    plain = asked.lower().replace("-", "_").removesuffix("_tuning")
    spelled = next((name for name in METHODS if name.removesuffix("_tuning") == plain), None)
    close = [spelled] if spelled else difflib.get_close_matches(asked.lower(), METHODS, n=1, cutoff=0.8)
    if close:
        return f"method: {close[0]} (known: {', '.join(METHODS)})"
    return f"known: {', '.join(METHODS)}; other methods of PEFT are method: peft with peft: {{type: {asked.upper()}}}"


def _check_quantized(settings: Settings, refuse: Callable[[str, str, str], None]) -> None:
    """What a base in 4 or 8 bits cannot be."""
    if settings.qlora.quantization.startswith("int8") and "double_quant" in settings.qlora.model_fields_set:
        refuse("qlora.double_quant", f"double_quant has no effect with quantization: {settings.qlora.quantization}", "take it out")
    if settings.training.frozen_base == "fp8":
        refuse("training.frozen_base", f"fp8 goes with a base in bf16, and method: {settings.method} quantizes it", "training.frozen_base: bf16")


def config_of_rows(rows: Path, model: str, overrides: list[str] | None = None) -> Config:
    """Settings around a file of rows, to look at it: all of it is taken as training rows, but where `overrides` say otherwise."""
    name = str(rows)
    if name != name.encode("utf-8", "replace").decode():
        shown = name.encode("utf-8", "backslashreplace").decode()
        raise ConfigError("the file's name is not UTF-8, and settings cannot hold it", where=shown, next_step="rename it, or name its folder")
    tree: dict[str, Any] = {"model": model, "data": {"train": name, "eval": None}}
    places: dict[str, str] = {}
    for override in overrides or []:
        _override(tree, places, override)
    file = Path("luthier.yaml")
    return Config(_validate(tree, places, file), file, {}, [])
