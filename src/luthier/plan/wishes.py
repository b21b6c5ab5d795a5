"""What a model is wanted for, and the device it is to run on: flags and presets made one record."""

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any, Literal

from luthier.config.section import bytes_of
from luthier.errors import CallError
from luthier.models.licenses import USES, Use, check_use
from luthier.records import Machine

Domain = Literal["near", "far"]
HERE = "this"


@dataclass(frozen=True, slots=True)
class Device:
    """Where a model is tuned and answers: memory in bytes, the rate of its products in GFLOP/s, its memory's bandwidth in bytes a second."""

    name: str
    memory_bytes: int
    gflops: float
    bandwidth: float
    kind: str = "cuda"  # cpu | cuda | mps, as Machine.device; those of the table are GPUs


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the model is for. `context` in tokens (0: rows of usual length); `latency_ms` for each token of an answer (0: any); `hours` is
    the longest training; `open_data`: published training data counts in its favor."""

    task: str
    device: Device
    use: Use = "internal"
    rows: int = 1000
    domain: Domain = "near"
    languages: tuple[str, ...] = ("en",)
    context: int = 0
    latency_ms: float = 0.0
    hours: float = 24.0
    open_data: bool = False


@functools.cache
def rules() -> dict[str, Any]:
    """The tables of choosing.toml."""
    return _read("choosing.toml")


@functools.cache
def device_rules() -> dict[str, Any]:
    """The tables of devices.toml."""
    return _read("devices.toml")


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads(resources.files("luthier.plan").joinpath(name).read_text(encoding="utf-8"))


def devices() -> dict[str, Device]:
    """The devices that can be named."""
    table: dict[str, dict[str, float]] = device_rules()["devices"]
    return {name: Device(name, round(row["memory"] * 1e9), row["tflops"] * 1e3, row["bandwidth"] * 1e9) for name, row in table.items()}


def device_of(machine: Machine) -> Device:
    """This machine. Its memory's bandwidth is not measured: that of a usual processor's."""
    rate = max(machine.bf16_gflops, machine.fp32_gflops, machine.fp16_gflops)
    return Device(machine.name, machine.memory_bytes, rate, device_rules()["cpu_bandwidth"] * 1e9, machine.device)


def questions() -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """What is asked where no flag says it: name -> question, the usual answer, and the possible ones (none: free)."""
    return {
        "task": ("What is the model for?", "chat", tuple(rules()["tasks"])),
        "domain": ("Are your texts near to what is usual on the web, or far from it?", "near", ("near", "far")),
        "rows": ("How many rows do you have?", "1000", ()),
        "device": ("On which device?", HERE, (HERE, *devices())),
        "use": ("For which use?", "internal", USES),
        "language": ("In which languages (en, de ...)?", "en", ()),
        "context": ("How long is the longest text, in tokens (0: usual)?", "0", ()),
        "latency": ("How many milliseconds may a token of an answer take (0: any)?", "0", ()),
    }


def make_wishes(given: Mapping[str, Any], machine: Machine, profile: str | None = None) -> Wishes:
    """The wishes of a call: what is given (None: not given), else what the profile says, else what is usual.

    Raises CallError for a task, domain, use, device, size or profile that is not known, and for a number that is none.
    """
    presets = _one_of("--profile", profile, rules()["profiles"]) if profile else {}
    answers = {**presets, **{name: value for name, value in given.items() if value is not None}}
    device = answers.get("device", HERE)
    named = device_of(machine) if device == HERE else _one_of("--device", device, {HERE: None, **devices()})
    if asked := answers.get("memory"):
        named = replace(named, memory_bytes=_bytes(asked))
    task = answers.get("task", "")
    _one_of("--task", task, rules()["tasks"])
    domain = answers.get("domain", "near")
    _one_of("--domain", domain, {"near": 0, "far": 1})
    return Wishes(
        task=task,
        device=named,
        use=check_use(answers.get("use", "internal")),
        rows=_number("--rows", answers.get("rows", 1000), least=1),
        domain=domain,
        languages=tuple(part.strip().lower() for part in str(answers.get("language", "en")).split(",") if part.strip()),
        context=_number("--context", answers.get("context", 0)),
        latency_ms=float(_number("--latency", answers.get("latency", 0))),
        hours=float(_number("--hours", answers.get("hours", rules()["usual"]["hours"]), least=1)),
        open_data=bool(answers.get("open_data", False)),
    )


def _one_of(flag: str, value: str, table: Mapping[str, Any]) -> Any:
    if value not in table:
        raise CallError(f"{value!r} is not known" if value else "is not given", where=flag, next_step=" | ".join(table))
    return table[value]


def _bytes(size: str) -> int:
    try:
        return bytes_of(size)
    except ValueError as error:
        raise CallError(str(error), where="--memory", next_step="--memory 24GB") from error


def _number(flag: str, value: Any, least: int = 0) -> int:
    try:
        number = int(float(value))
    except (ValueError, OverflowError) as error:
        raise CallError(f"{value!r} is no number", where=flag, next_step=f"{flag} 1000") from error
    if number < least:
        raise CallError(f"{value} is too small", where=flag, next_step=f"at least {least}")
    return number
