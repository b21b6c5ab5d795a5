"""What a run would cost, and what every `auto` becomes. No weights are loaded; without torch or the model the tokens are estimated."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier import files
from luthier.config.load import Config
from luthier.config.methods import METHODS
from luthier.config.settings import Settings
from luthier.data import prepare
from luthier.data.conversations import check_objective
from luthier.errors import CallError
from luthier.models import facts, fetch, find, layer_names, peft_types, weights
from luthier.models.catalog import ModelCard
from luthier.models.facts import ModelFacts
from luthier.plan import choose, cost, counts, elsewhere, levers, machine, ranges, scaling, shape, wishes
from luthier.plan.choose import Plan
from luthier.plan.decision import Decision, decide
from luthier.plan.elsewhere import Elsewhere, Prices
from luthier.plan.levers import Neighbor
from luthier.plan.ranges import Range
from luthier.plan.scaling import Scaled
from luthier.reporting import Reporter, Silent


@dataclass(frozen=True, slots=True)
class Overview:
    """A plan with all that helps to judge it: whether to tune at all and how, what is usual, and the same run elsewhere.

    `levers` are changes with the bytes that the largest single row would then need, the strongest first.
    """

    plan: Plan
    decision: Decision
    ranges: list[Range]
    neighbors: list[Neighbor]
    devices: list[Elsewhere]
    prices: Prices
    levers: list[tuple[str, int]]

    def as_json(self) -> dict[str, Any]:
        """The plan as plan.json holds it, with the rest beside it."""
        return {
            **self.plan.as_json(),
            "decision": dataclasses.asdict(self.decision),
            "ranges": [dataclasses.asdict(one) for one in self.ranges],
            "neighbors": [dataclasses.asdict(one) for one in self.neighbors],
            "devices": [dataclasses.asdict(one) for one in self.devices],
            "prices": dataclasses.asdict(self.prices),
            "levers": [{"change": change, "needs_bytes": size} for change, size in self.levers],
        }


def make_plan(config: Config, reporter: Reporter | None = None) -> Plan:
    """The plan of a config on this machine. Reads the rows; fetches nothing but a model that is not here and not in the catalog.

    Raises ConfigError for names that the model, PEFT or this machine has not.
    """
    return _plan(config, reporter or Silent())[0]


def overview(config: Config, reporter: Reporter | None = None, prices: Path | None = None) -> Overview:
    """The same plan with the decision, the usual ranges, and what other methods and machines would need. `prices` is a file of them."""
    priced = elsewhere.read_prices(prices)
    plan, held_out_rows = _plan(config, reporter or Silent())
    of_run = (plan.settings, plan.facts, plan.machine, plan.rows)
    return Overview(
        plan,
        decide(plan, held_out_rows),
        ranges.ranges(plan.settings, plan.facts, plan.rows, plan.updates),
        levers.neighbors(*of_run),
        elsewhere.on_devices(plan.settings, plan.facts, plan.rows, plan.updates, priced),
        priced,
        levers.levers(*of_run),
    )


@dataclass(frozen=True, slots=True)
class Simulation:
    """A run on more devices, as far as arithmetic tells, and what that stands on."""

    plan: Plan
    device: str
    scaled: list[Scaled]
    assumptions: list[str]

    def as_json(self) -> dict[str, Any]:
        """The numbers, a row for each number of devices, and the assumptions."""
        rows = [dataclasses.asdict(one) for one in self.scaled]
        return {"device": self.device, "devices": rows, "assumptions": self.assumptions, "links": scaling.rules()["source"].strip()}


def on_more_devices(config: Config, counts: Sequence[int], device: str = wishes.HERE, reporter: Reporter | None = None) -> Simulation:
    """What a run would need and take on each of these numbers of devices of one kind: those of this machine, or of devices.toml by name.

    Raises CallError for a device that is not known there.
    """
    plan, _ = _plan(config, reporter or Silent())
    known = wishes.devices()
    if device not in (wishes.HERE, *known):
        raise CallError(f"no device has the name {device!r}", where="--device", next_step=" | ".join((wishes.HERE, *known)))
    asked, there = plan.settings.model_copy(update={"wrapping": config.settings.wrapping}), plan.machine
    if device != wishes.HERE:
        there, asked = elsewhere.machine_of(known[device]), cost.changed(asked, {"training.precision": "bf16", "max_memory": None})
    found = scaling.simulate(asked, plan.facts, there, plan.rows, plan.updates, counts)
    return Simulation(plan, there.name, found, scaling.assumptions(there, asked))


def _plan(config: Config, reporter: Reporter) -> tuple[Plan, int]:
    """The plan, and how many rows are held out."""
    settings = config.settings
    if settings.method == "peft":
        peft_types.type_of(settings.peft.get("type"))
    here = machine.planned_machine(files.home(), settings.device)
    if settings.init_from:
        settings = _going_on(config)
    rows = prepare.load_rows(settings.data, config.file.parent, settings.seed, reporter)
    check_objective(rows.sources, settings.objective)
    for note in rows.notes:
        reporter.say(note)
    card = find.of_catalog(settings.model, config.file.parent)
    folder = fetch.present(card) if card else find.find(settings.model, reporter, config.file.parent)
    model_facts = card.facts if card else facts.from_folder(_there(folder))
    _check_layers(config, folder, card, model_facts, reporter)
    counted = counts.known(counts.counts_file(files.home(), settings, rows.sources))
    plan = choose.resolve(settings, model_facts, here, counted or shape.of_text(rows.train, settings.objective, len(rows.held_out)))
    estimated = f"tokens are estimated at {shape.CHARACTERS_PER_TOKEN} characters each; luthier data check counts them"
    reporter.say("tokens are those that were counted before" if counted else estimated)
    return plan, len(rows.held_out)


def _there(folder: Path | None) -> Path:
    assert folder is not None  # only a card may have none
    return folder


def _going_on(config: Config) -> Settings:
    """The settings with those of the adapter that `init_from` names. Raises ConfigError where it names nothing to go on from, and for what
    was given and differs from how the adapter was made: as `luthier train` does."""
    from luthier.train import session  # an adapter's settings are read with the libraries that made it: torch comes with them

    return session.with_earlier_adapter(config).settings


def _check_layers(config: Config, folder: Path | None, card: ModelCard | None, model_facts: ModelFacts, reporter: Reporter) -> None:
    """Raises ConfigError for names of layers that the model has not; where its layers cannot be known without loading it, that is said."""
    wanted = {name: targets for name, targets in _targets(config.settings).items() if targets not in ("auto", "all-linear", None)}
    if not wanted or config.settings.init_from:
        return
    if folder and weights.are_there(folder):
        linear = layer_names.of_weights(folder)
    else:
        kind = card.type if card else str(weights.read_config(_there(folder)).get("model_type"))
        linear = layer_names.of_architecture(kind, model_facts.layers)
    for name, targets in wanted.items():
        if not linear:
            reporter.say(f"{name} is not checked: the layers of this model are known when it is loaded")
            continue
        layer_names.require(targets, linear, name)


def _targets(settings: Settings) -> dict[str, Any]:
    """Settings that name layers of the model, those of this run's method."""
    of_method: dict[str, dict[str, Any]] = {
        "lora": {"lora.target_modules": settings.lora.target_modules},
        "ia3": {"ia3.target_modules": settings.ia3.target_modules, "ia3.feedforward_modules": settings.ia3.feedforward_modules},
        "peft": {"peft.target_modules": settings.peft.get("target_modules")},
    }
    return {name: targets for block, named in of_method.items() if block in METHODS[settings.method].blocks for name, targets in named.items()}
