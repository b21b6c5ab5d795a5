"""The same run on devices that can be named: whether it fits there, about how long it takes and what that costs. No device is asked."""

import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from luthier.config.settings import Settings
from luthier.errors import ConfigError
from luthier.models.facts import ModelFacts
from luthier.plan import cost, in_words, levers, wishes
from luthier.plan.cost import DataShape
from luthier.plan.wishes import Device
from luthier.records import Machine

# The name of the machine at hand in a file of prices.
HERE = wishes.HERE
SHIPPED = "prices.toml"


@dataclass(frozen=True, slots=True)
class Prices:
    """What an hour costs, by device, in `currency`; `source` and `date` say whose prices these are."""

    hours: dict[str, float]
    currency: str
    source: str
    date: str

    def of(self, device: str, seconds: float) -> float | None:
        """What so many seconds on a device cost; None where it has no price."""
        return None if device not in self.hours else self.hours[device] * seconds / 3600


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The run on a device: its peak there, with the largest micro-batches and the least recomputation that fit, about how long, for how much.

    `price` is None where the device has none; `seconds` is an estimate from the device's data sheet.
    """

    device: str
    memory_bytes: int
    fits: bool
    needs_bytes: int
    seconds: float
    price: float | None

    @property
    def time_in_words(self) -> str:
        """About how long; no seconds, which launches and loading would decide."""
        return "< 1 minute" if self.seconds < 60 else in_words.duration(self.seconds)

    @property
    def price_in_words(self) -> str:
        """The price with two digits; "" where there is none."""
        if self.price is None:
            return ""
        return "< 0.01" if 0 < self.price < 0.01 else f"{self.price:.2f}"


def on_devices(settings: Settings, facts: ModelFacts, rows: DataShape, updates: int, prices: Prices) -> list[Elsewhere]:
    """The run on each device of devices.toml, as the table orders them. `settings` are a plan's, without any `auto`."""
    return [_on(device, settings, facts, rows, updates, prices) for device in wishes.devices().values()]


def _on(device: Device, settings: Settings, facts: ModelFacts, rows: DataShape, updates: int, prices: Prices) -> Elsewhere:
    machine = machine_of(device)
    asked = cost.changed(settings, {"training.precision": "bf16", "max_memory": None})
    found = levers.within(asked, facts, machine, rows, device.memory_bytes)
    chosen = {"training.micro_batch_tokens": found.micro_batch_tokens, "training.gradient_checkpointing": found.gradient_checkpointing}
    seconds = cost.training_seconds(cost.changed(asked, chosen), facts, machine, rows, updates)
    return Elsewhere(device.name, device.memory_bytes, found.fits, found.needs_bytes, seconds, prices.of(device.name, seconds))


def machine_of(device: Device) -> Machine:
    """A device of the table as a machine: one GPU at the rate of its data sheet."""
    return Machine("cuda", device.name, 1, device.memory_bytes, device.gflops, device.gflops / 2)


def read_prices(path: Path | None = None) -> Prices:
    """The prices in a file, or (None) those that are shipped. Raises ConfigError for a file that holds none, and for a price that is none."""
    where = str(path or SHIPPED)
    try:
        table = tomllib.loads((path or resources.files("luthier.plan").joinpath(SHIPPED)).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"cannot be read as prices: {error}", where=where, next_step="copy luthier/plan/prices.toml and change its numbers"
        ) from error
    hours = table.get("hours")
    if not isinstance(hours, dict) or not hours:
        raise ConfigError("holds no prices", where=f"{where}: hours", next_step="[hours] and a line for each device, as a100-80gb = 2.45")
    known = [HERE, *wishes.devices()]
    for name, price in hours.items():
        _check(name, price, f"{where}: hours.{name}", known)
    of = {name: str(table.get(name, "")).strip() for name in ("currency", "source", "date")}
    return Prices({name: float(price) for name, price in hours.items()}, **of)


def _check(name: str, price: Any, where: str, known: list[str]) -> None:
    if name not in known:
        raise ConfigError(f"no device has the name {name!r}", where=where, next_step=" | ".join(known))
    if isinstance(price, bool) or not isinstance(price, int | float) or not 0 <= price < float("inf"):
        raise ConfigError(f"{price!r} is no price of an hour", where=where, next_step=f"{name} = 1.50")
