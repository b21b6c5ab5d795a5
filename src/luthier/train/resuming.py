"""Going on with a run that was stopped: which one, with which settings, and what must be as it was when it began."""

import getpass
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from luthier import files, run_folder, run_lock
from luthier.config.launch_rules import PARTS, one_process
from luthier.config.load import PATHS, Config, all_settings, load_config
from luthier.config.methods import METHODS
from luthier.config.settings import Settings
from luthier.data import ledger, prepare
from luthier.data.prepare import Prepared
from luthier.engine import opening, ranks
from luthier.errors import CallError, DataError, RunError
from luthier.models import weights
from luthier.plan.machine import processor
from luthier.reporting import Reporter
from luthier.run_folder import RunFolder
from luthier.train import checkpoint, differences
from luthier.version import VERSION

# Of environment.json: its schema, and what a run that goes on is compared with.
SCHEMA = 1
COMPARED = ("asked", "settings", "machine", "contents")
LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy")
# What a run is made from, by names that are no setting's.
CONTENTS = ("data", "held-out rows", "base", "template text", "tokenizer", "init_from weights")
OPTIMIZER_LIBRARIES = {"adamw_8bit": "bitsandbytes", "lion_8bit": "bitsandbytes", "schedule_free": "schedulefree"}


# Which run


def newest_stopped(config: Config) -> RunFolder:
    """The newest run of this settings file that was stopped before its end and is not in use.

    Raises RunInUse where each of them is in use, CallError where there is none.
    """
    stopped = list(_unfinished(config))
    for run in stopped:
        if run_lock.holder(run.path) is None:
            return run
    if stopped:
        run_lock.require_free(stopped[0].path)
    ended = [run for run in _of_file(config) if run.trained.is_dir()]
    raise CallError(
        f"its newest run has ended: {ended[0].path}" if ended else f"no run of it was stopped in {_output_dir(config)}",
        where=str(config.file),
        next_step=f"luthier train {config.file} begins a new run",
    )


def unfinished(config: Config, reporter: Reporter) -> RunFolder | None:
    """The run that `resume: auto` goes on with: the newest of this settings file that has not ended and has the same settings, but for
    harmless changes. Raises RunInUse where another process works in it."""
    for run in _unfinished(config):
        found = differences.between(*_settings_then_and_now(run, _goes_on_as(run, config)))
        if harmful := [str(one) for one in found if not one.harmless]:
            reporter.say(f"resume: auto leaves {run.name} as it is: {'; '.join(harmful)}")
            continue
        run_lock.require_free(run.path)
        return run
    return None


def of_job(config: Config, job: str, since_s: int) -> RunFolder | None:
    """The run that a job of several processes, begun at `since_s` (seconds since 1970), began before its processes were started again, where
    it had come so far and has not ended. (A name of a job may be used by one after the other.)"""

    def is_its(began: dict[str, Any]) -> bool:
        return bool(job) and began.get("job") == job and datetime.fromisoformat(began["began"]).timestamp() >= since_s

    return next((run for run in _unfinished(config) if is_its(_began(run))), None)


def require_not_ended(run: RunFolder) -> None:
    """Raises CallError where there is nothing left to train."""
    if run.trained.is_dir():
        raise CallError("this run has ended", where=str(run.path), next_step="for more epochs or rows, start a run with init_from: this one")


def _output_dir(config: Config) -> Path:
    return Path(config.beside(config.settings.output_dir))


def _unfinished(config: Config) -> Iterator[RunFolder]:
    return (run for run in _of_file(config) if not run.trained.is_dir())


def _of_file(config: Config) -> Iterator[RunFolder]:
    """The runs that began with this settings file, newest first; where that file is gone, with one of its name (the project has moved)."""
    for run in reversed(run_folder.list_runs(_output_dir(config))):
        try:
            began_with = Path(_began(run).get("asked", {}).get("file", ""))
        except RunError:
            continue  # damaged, or of a newer Luthier: whoever names it is told
        if began_with == config.file.resolve() or (began_with.name == config.file.name and not began_with.exists()):
            yield run


# With which settings


def goes_on(run: RunFolder, config: Config, reporter: Reporter) -> Config:
    """The settings that `run` goes on with: its own, with what `config` (the file it began with, or its own) says otherwise.

    Every difference is told, and one that is not harmless raises RunError. The run's threads are used again.
    """
    run_lock.require_free(run.path)
    began = _began(run)
    wanted = _goes_on_as(run, config)
    then, now = _settings_then_and_now(run, wanted)
    kept, here = began.get("machine", {}), machine(wanted.settings)
    found = differences.between(then, now) + differences.between(kept, here)
    differences.tell(found, run, reporter)
    differences.refuse(found, run)
    _require_paths(run, wanted, kept)
    threads, as_many_ranks = began.get("threads", torch.get_num_threads()), began.get("ranks", 1) == ranks.world()
    if threads != torch.get_num_threads() and as_many_ranks:
        reporter.say(f"threads: {threads}, as when the run began (this process had {torch.get_num_threads()}): its results depend on their number")
        torch.set_num_threads(threads)
    return wanted


def _began(run: RunFolder) -> dict[str, Any]:
    """What the run knows of its beginning. Raises RunError where a newer Luthier wrote it, or where checkpoints would be gone on from and it
    is not whole."""
    if not run.environment.is_file() and not checkpoint.list_checkpoints(run):
        return {}
    try:
        stored = files.read_json(run.environment)
    except RunError as error:
        raise _not_compared(run, error.problem) from error
    if not isinstance(stored, dict):
        raise _not_compared(run, "is not as it was written")
    if stored.get("schema", SCHEMA) > SCHEMA:
        raise RunError(
            f"was written by a newer Luthier ({stored.get('machine', {}).get('luthier')}; schema {stored['schema']}, and {VERSION} reads {SCHEMA})",
            where=str(run.environment),
            next_step="pip install --upgrade luthier",
        )
    if missing := [name for name in COMPARED if not isinstance(stored.get(name), dict)]:
        raise _not_compared(run, f"does not hold {', '.join(missing)}")
    return stored


def _not_compared(run: RunFolder, problem: str) -> RunError:
    return RunError(
        f"{problem}: what the run began with cannot be compared",
        where=str(run.environment),
        next_step=f"put this file back as it was, or begin a new run: luthier train {run.config}",
    )


def _goes_on_as(run: RunFolder, config: Config) -> Config:
    """The run's own settings with what `config` says otherwise than the settings file said when the run began."""
    if config.file.resolve() == run.config.resolve():
        return config
    asked = _began(run).get("asked")
    if asked is None:
        raise RunError("does not say what it was asked for", where=str(run.environment), next_step=f"luthier train --resume {run.path}")
    then_at, now_at = Path(asked["file"]).parent, config.file.resolve().parent
    then, now = leaves(asked["settings"]), leaves(config.settings.model_dump(mode="json"))
    # A default that has become auto since the run began is nobody's change.
    changed = {name for name in then.keys() & now.keys() if then[name] != now[name] and not (now[name] == "auto" and name not in config.given)}
    changed |= {name for name in PATHS & (then.keys() & now.keys()) if _placed(then[name], then_at) != _placed(now[name], now_at)}
    tree = load_config(run.config).settings.model_dump(mode="json")
    for name in changed:
        section, _, key = name.rpartition(".")
        (tree[section] if section else tree)[key] = _placed(now[name], now_at) if name in PATHS else now[name]
    if one_process(config.settings):
        tree |= {"wrapping": "auto", "sequence_parallel": 1}  # what several ranks shared is nothing to one
    if tree["wrapping"] not in PARTS:
        tree["launch"]["cpu_offload"] = "auto"
    given = {name: config.given.get(name, str(config.file)) for name in changed}
    return Config(Settings.model_validate(tree), run.config, given, config.notes, says=config)


def _placed(value: Any, folder: Path) -> Any:
    """A setting that may name a file beside the settings file, with the whole path where there is one."""
    if isinstance(value, list):
        return [_placed(one, folder) for one in value]
    if isinstance(value, dict):
        return {key: _placed(one, folder) if key == "path" else one for key, one in value.items()}
    if isinstance(value, str) and value not in ("", "-") and (path := folder / Path(value).expanduser()).exists():
        return str(path.resolve())
    return value


def _settings_then_and_now(run: RunFolder, config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    return leaves(_began(run).get("settings", {})), leaves(config.settings.model_dump(mode="json"))


def leaves(tree: dict[str, Any]) -> dict[str, Any]:
    """Settings by their dotted names, without the sections around them."""
    names = list(all_settings())
    sections = {name.rpartition(".")[0] for name in names}
    found = {}
    for name in names:
        section, _, key = name.rpartition(".")
        values = tree.get(section, {}) if section else tree
        if name not in sections and key in values:
            found[name] = values[key]
    return found


def _require_paths(run: RunFolder, config: Config, kept: dict[str, Any]) -> None:
    """Raises RunError for a file of the settings that is not here, as on another machine."""
    settings = config.settings.model_dump(mode="json")
    for name, value in leaves(settings).items():
        sources = [one["path"] if isinstance(one, dict) else one for one in (value if isinstance(value, list) else [value])] if name in PATHS else []
        for path in (str(source) for source in sources if source is not None):
            if name != "output_dir" and Path(path).is_absolute() and not any(letter in path for letter in "*?[") and not Path(path).exists():
                raise RunError(
                    f"{name} is {path}, which is not here (the run began on {kept.get('host', 'another machine')})",
                    where=str(run.path),
                    next_step=f"luthier train --resume {run.path} {name}=WHERE_IT_IS_NOW",
                )


# What must be as it was


def machine(settings: Settings) -> dict[str, str]:
    """Where a run is computed, and by what."""
    used = [*LIBRARIES, *_used_by(settings)]
    return {
        "luthier": VERSION,
        "device": opening.device_of(settings),
        **{name: importlib.metadata.version(name) for name in used},
        "python": platform.python_version(),
        "processor": f"{processor()[0]}, {torch.backends.cpu.get_cpu_capability()}",
        "system": platform.platform(),
        "host": f"{_user()}@{platform.node()}",
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user has a number and no name
        return str(os.getuid())


def _used_by(settings: Settings) -> list[str]:
    """The libraries beside the usual ones whose arithmetic the run has."""
    quantizes = ["bitsandbytes"] if METHODS[settings.method].quantized_base else []
    found = dict.fromkeys([*quantizes, *filter(None, [OPTIMIZER_LIBRARIES.get(settings.training.optim)])])
    return [name for name in found if _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def contents(config: Config, folder: Path, tokenizer: Any, prepared: Prepared) -> dict[str, Any]:
    """Hashes of what a run is made from: rows, base, template, tokenizer and, with init_from, what it goes on from."""
    held_out = sha256()
    for row in prepared.rows.held_out:
        held_out.update(json.dumps({**ledger.held_out_row(row), "source": None}, sort_keys=True).encode("utf-8", "backslashreplace"))
    found = (
        prepared.sha256,
        held_out.hexdigest(),
        weights.fingerprint(folder),
        sha256(str(tokenizer.chat_template).encode("utf-8", "backslashreplace")).hexdigest(),
        sha256(json.dumps([tokenizer.get_vocab(), tokenizer.special_tokens_map], sort_keys=True, default=str).encode()).hexdigest(),
        _hash_of(opening.earlier_trained(config)) if config.settings.init_from else None,
    )
    return dict(zip(CONTENTS, found, strict=True))


def _hash_of(folder: Path) -> str:
    parts = [f"{path.name} {files.sha256(path)}" for path in sorted(folder.glob("*.safetensors"))]
    return sha256("\n".join(parts).encode()).hexdigest()


def beginning(config: Config, run: RunFolder, folder: Path, tokenizer: Any, prepared: Prepared) -> dict[str, Any]:
    """What environment.json keeps of a run that begins: what was asked and what became of it, the machine, and what the rows and models hold."""
    return {
        "schema": SCHEMA,
        "id": os.urandom(8).hex(),
        "ranks": ranks.world(),
        "job": os.environ.get("TORCHELASTIC_RUN_ID", ""),
        "number": run_folder.next_number(run.path.parent),
        "asked": _asked(config),
        # As they are read back from config.yaml.
        "settings": load_config(run.config).settings.model_dump(mode="json"),
        "machine": machine(config.settings),
        "threads": torch.get_num_threads(),
        "contents": contents(config, folder, tokenizer, prepared),
    }


def _asked(config: Config) -> dict[str, Any]:
    return {"file": str(config.file.resolve()), "settings": (config.asked or config.settings).model_dump(mode="json")}


def keep_asked(run: RunFolder, config: Config) -> None:
    """A change, next time, is one from what is asked for now: by the settings file that the run goes on with, or by a call for the run itself."""
    stored = _began(run)
    asked = _asked(config.says) if config.says else _with_call(stored["asked"], config)
    if asked != stored["asked"]:
        files.write_json(run.environment, {**stored, "asked": asked})


def _with_call(asked: dict[str, Any], config: Config) -> dict[str, Any]:
    """The same with the values of the call, but for files: one that has moved is where the call says, whatever the settings file says of it."""
    called = {name for name, place in config.given.items() if place.startswith("command line")} - PATHS
    tree = json.loads(json.dumps(asked["settings"]))
    for name, value in leaves(config.settings.model_dump(mode="json")).items():
        if any(f"{one}.".startswith(f"{name}.") for one in called):
            section, _, key = name.rpartition(".")
            (tree[section] if section else tree)[key] = value
    return {**asked, "settings": tree}


def require_same_contents(run: RunFolder, config: Config, folder: Path, tokenizer: Any, prepared: Prepared, reporter: Reporter) -> None:
    """Raises an error where rows, base, template or tokenizer are not what the run began with; each that differs is told."""
    then = _began(run).get("contents", {})
    found = differences.between(then, contents(config, folder, tokenizer, prepared))
    differences.tell(found, run, reporter)
    if any(one.what == "base" for one in found):
        opening.require_same_base(run, folder)
    if any(one.what == "data" for one in found):
        _require_same_rows(run, prepared)
    differences.refuse(found, run)
    if not run.ledger.is_file() or _paths(prepared.rows.sources) != _paths(files.read_json(run.ledger)["sources"]):
        prepare.write_ledger(run, prepared)  # the same rows, from files that have moved


def _require_same_rows(run: RunFolder, prepared: Prepared) -> None:
    try:
        ledger.check_same_sources(run, prepared.rows.sources)
    except DataError as error:
        raise RunError(
            f"the training rows have changed: {error.where} {error.problem}",
            where=str(run.path),
            next_step="put the file back as it was, or begin a new run",
        ) from error


def _paths(sources: list[dict[str, Any]]) -> list[object]:
    return [source.get("path") for source in sources]
