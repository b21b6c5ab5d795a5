"""How the processes of a run on several devices find each other and are started again, and where what they share lies. One device reads none
of it."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from luthier.config.section import Auto, Section, Text


def bounds_of(nodes: int | str) -> tuple[int, int]:
    """The least and the most hosts of a run (2 -> 2, 2; "1:4" -> 1, 4). Raises ValueError for another text."""
    if isinstance(nodes, int):
        return nodes, nodes
    found = re.fullmatch(r"([1-9][0-9]{0,4}):([1-9][0-9]{0,4})", nodes)
    if not found or int(found[1]) > int(found[2]):
        raise ValueError(f"{nodes!r} is not MIN:MAX with 1 <= MIN <= MAX, such as 1:4")
    return int(found[1]), int(found[2])


def _checked(nodes: str) -> str:
    bounds_of(nodes)
    return nodes


Hosts = Annotated[int, Field(ge=1, le=10_000)] | Annotated[str, AfterValidator(_checked)]


class LaunchSettings(Section):
    """Starting several processes, on one host or on many (docs/launch.md)."""

    head: Text | None = Field(
        None,
        description="name or address of the host where the others meet, for hosts that are started by hand; job files name it themselves",
    )
    port: int = Field(29400, ge=1, le=65535, description="port on which the hosts of a run meet; one host takes a free one by itself")
    max_restarts: int = Field(3, ge=0, le=1000, description="how often all processes are started again from the newest checkpoint where one is lost")
    timeout_minutes: float = Field(
        30.0, gt=0, le=10_000, description="a process that the others wait for longer than this is given up, and named; writing a checkpoint counts"
    )
    cpu_offload: bool | Auto = Field(
        "auto",
        description="with wrapping: fsdp and hsdp, each device's part of weights, gradients and optimizer lies in main memory, which is slow; "
        "auto: where they do not fit the devices, and main memory has room for them",
    )
