"""What no run of a model can be: settings that its sizes refuse."""

from luthier.config.methods import METHODS
from luthier.config.settings import Settings
from luthier.errors import ConfigError
from luthier.models.facts import ModelFacts


def check_rank(settings: Settings, facts: ModelFacts) -> None:
    """Raises ConfigError where an adapter is asked for that is wider than the model."""
    if "lora" in METHODS[settings.method].blocks and settings.lora.numbers[0] > facts.hidden:
        raise ConfigError(
            f"lora.r is {settings.lora.r}, and the model's vectors have {facts.hidden} numbers: more is not in them",
            where="lora.r",
            next_step=f"lora.r: 16 is usual; {facts.hidden} at most",
        )


def check_warmup(settings: Settings, updates: int) -> None:
    if (warmup := settings.training.warmup_steps or 0) > updates:
        raise ConfigError(
            f"training.warmup_steps is {warmup}, and the run has {updates} updates: the rate would never reach its peak",
            where="training.warmup_steps",
            next_step=f"fewer than {updates}, or training.warmup_ratio: 0.03",
        )


def check_heads(settings: Settings, facts: ModelFacts) -> None:
    """Raises ConfigError where the ranks of a team cannot have equal shares of the attention's heads, or (tp) of the MLP's columns."""
    cuts_layers = settings.wrapping == "tp" and settings.devices != "auto"
    where, team = ("devices", int(settings.devices)) if cuts_layers else ("sequence_parallel", settings.sequence_parallel)
    if not shares_evenly(facts, team, columns=cuts_layers):
        possible = [size for size in range(1, facts.kv_heads + 1) if shares_evenly(facts, size, columns=cuts_layers)]
        columns = f" and the {facts.intermediate:,} columns of the MLP" if cuts_layers else ""
        raise ConfigError(
            f"the {facts.heads} heads and {facts.kv_heads} key heads{columns} of this model cannot be dealt to {team} ranks in equal shares",
            where=where,
            next_step=f"{where}: {' or '.join(map(str, possible))}",
        )


def shares_evenly(facts: ModelFacts, ranks: int, *, columns: bool) -> bool:
    """Whether so many ranks can have equal shares of the attention's heads, and (`columns`) of the MLP."""
    return not any(size % ranks for size in (facts.heads, facts.kv_heads, facts.intermediate if columns else 0))


def check_team(settings: Settings) -> None:
    """Raises ConfigError where `devices: auto` turned out as a number that cannot be cut into teams."""
    team, devices = settings.sequence_parallel, int(settings.devices)
    if devices % team:
        problem = f"this host has {devices} devices, which cannot be cut into teams of sequence_parallel: {team}"
        raise ConfigError(problem, where="sequence_parallel", next_step=f"a host with {team}, or sequence_parallel: 1")


def check_max_length(settings: Settings, facts: ModelFacts) -> None:
    """Raises ConfigError where data.max_length asks for more than the model can read."""
    asked, room = settings.data.max_length, room_for_rows(settings, facts)
    if asked != "auto" and asked > room:
        before = f", of which {settings.virtual_tokens:,} are virtual" if settings.virtual_tokens else ""
        raise ConfigError(
            f"{asked:,} tokens are more than this model's context of {facts.context:,}{before}",
            where="data.max_length",
            next_step=f"data.max_length: {room}",
        )


def room_for_rows(settings: Settings, facts: ModelFacts) -> int:
    """Tokens of the model's context that are left for a row. Raises ConfigError where virtual tokens leave none."""
    room = facts.context - settings.virtual_tokens
    if room < 2:
        raise ConfigError(
            f"{settings.virtual_tokens:,} virtual tokens leave no room in this model's context of {facts.context:,}",
            where=f"{settings.method}.num_virtual_tokens",
            next_step=f"{settings.method}.num_virtual_tokens: 20",
        )
    return room
