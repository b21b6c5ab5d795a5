"""Whether an NVIDIA driver, its cards and this torch fit together, and what the cards can do.

No torch here, and nothing is asked of the machine: what `nvidia-smi` and torch say comes as text and numbers, so that a recording from any
machine is judged as the machine itself would be. The tables are in cuda.toml.
"""

import functools
import platform
import sys
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any

from luthier.plan.tested import is_older
from luthier.records import Finding

# What nvidia-smi is asked, in the order of read_cards. Drivers before 510 know no compute_cap and refuse the question.
ASKED = ("driver_version", "name", "memory.total", "compute_cap")
GET_TORCH = "https://pytorch.org/get-started/locally"


@dataclass(frozen=True, slots=True)
class Card:
    """An NVIDIA card as its driver names it: memory in bytes, compute capability as "9.0" ("": the driver does not tell)."""

    name: str
    memory_bytes: int
    capability: str


@dataclass(frozen=True, slots=True)
class Build:
    """The torch that is installed: its version, the CUDA that it was built for ("" for none), the architectures that it has kernels for
    ("sm_90", "compute_90"), its C++ ABI, whether it sees a card, and whether it has an attention for packed documents of its own."""

    version: str
    cuda: str
    architectures: tuple[str, ...]
    cxx11_abi: bool
    sees_card: bool
    has_varlen: bool


@functools.cache
def _tables() -> dict[str, Any]:
    return tomllib.loads(resources.files("luthier.plan").joinpath("cuda.toml").read_text(encoding="utf-8"))


def read_cards(answer: str) -> tuple[str, list[Card]]:
    """The driver's version and the cards, of what `nvidia-smi --query-gpu=... --format=csv,noheader,nounits` answers (ASKED; the last may lack).

    Raises ValueError where the answer is none of that shape, such as "NVIDIA-SMI has failed because ...".
    """
    rows = [[field.strip() for field in line.split(",")] for line in answer.splitlines() if line.strip()]
    if not rows or any(len(row) not in (3, 4) or not row[0][:1].isdigit() for row in rows):
        raise ValueError(answer.strip() or "no answer")
    cards = []
    for _, name, mebibytes, *capability in rows:
        size = int(mebibytes) * 2**20 if mebibytes.isdigit() else 0  # "[N/A]" where memory is the system's
        cards.append(Card(name, size, capability[0] if capability and capability[0][:1].isdigit() else ""))
    return rows[0][0], cards


def judge_driver(driver: str, cards: list[Card], build: Build | None) -> Finding:
    """Whether the driver is new enough for the CUDA of this torch, and the torch has kernels for each card. `build` None: no torch here."""
    there = f"driver {driver}, {', '.join(card.name for card in cards)}"
    newest = newest_cuda(driver)
    if build is None:
        return Finding("ok", "NVIDIA driver", f"{there}: for builds of torch up to CUDA {newest}.x")
    if not build.cuda:
        mend = f"pip install --force-reinstall torch (a build with CUDA, up to {newest}.x: {GET_TORCH}), then luthier doctor"
        return Finding("warning", "NVIDIA driver", f"{there}; this torch ({build.version}) was built without CUDA and cannot use it", mend)
    least = _tables()["drivers"].get(build.cuda.partition(".")[0])
    seen = f"{there}; torch {build.version} for CUDA {build.cuda}"
    if least and is_older(driver, least):
        mend = f"install driver {least} or newer, or a torch for CUDA {newest}.x: {GET_TORCH}"
        return Finding("error", "NVIDIA driver", f"{seen}, which needs driver {least} or newer", mend)
    without = [card for card in cards if card.capability and not _has_kernels(build.architectures, card.capability)]
    if without:
        lacks = f"{seen}, which has no kernels for {without[0].name} (compute capability {without[0].capability})"
        return Finding("error", "NVIDIA driver", lacks, f"install another build of torch: {GET_TORCH}")
    if not build.sees_card:
        mend = "look at CUDA_VISIBLE_DEVICES; in a container start it with --gpus all; after an update of the driver restart the machine"
        return Finding("warning", "NVIDIA driver", f"{seen}, which sees no card", mend)
    return Finding("ok", "NVIDIA driver", seen)


def newest_cuda(driver: str) -> str:
    """The newest major version of CUDA that runs on a driver; the oldest of the table where even that is newer."""
    table: dict[str, str] = {major: least for major, least in _tables()["drivers"].items() if major.isdigit()}
    fitting = [major for major, least in table.items() if not is_older(driver, least)]
    return max(fitting or [min(table, key=int)], key=int)


def _has_kernels(architectures: tuple[str, ...], capability: str) -> bool:
    """Whether a build runs on a card: it has the card's own code, code of an older minor version, or code that the driver can translate."""
    if not architectures:
        return True
    card = _capability(capability)
    for name in architectures:
        kind, _, number = name.rstrip("af").partition("_")
        built = (int(number[:-1]), int(number[-1]))
        if built <= card and (kind == "compute" or built[0] == card[0]):
            return True
    return False


def _capability(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return int(major), int(minor or 0)


def judge_card(card: Card) -> Finding:
    """What a card can do: bf16, fp8, flash attention; a card without bf16 is a warning."""
    seen = f"{card.name}, {card.memory_bytes / 1e9:.0f} GB"
    if not card.capability:
        return Finding("ok", "card", f"{seen} (the driver does not tell its compute capability)")
    least = _tables()["capabilities"]
    can = {name: _capability(card.capability) >= _capability(least[name]) for name in ("bf16", "fp8", "flash_attention")}
    words = ", ".join(f"{name.replace('_', ' ')} {'yes' if able else 'no'}" for name, able in can.items())
    seen = f"{seen}, compute capability {card.capability}: {words}"
    if not can["bf16"]:
        return Finding("warning", "card", seen, "leave training.precision on auto (fp16 with a loss scale, or fp32, whichever is faster)", dict(can))
    return Finding("ok", "card", seen, details=dict(can))


def judge_flash_attention(build: Build | None, cards: list[Card], installed: str, python: str = "", machine: str = "") -> Finding:
    """Which wheel of flash-attn fits this Python, torch, CUDA and ABI, or why none is needed. It is never a fault: Luthier works without.

    `python` as "3.11" and `machine` as "linux_x86_64" are those of this process where they are not given.
    """
    subject = "flash attention"
    if build is None or not build.cuda or not cards:
        return Finding("ok", subject, "none is needed: without an NVIDIA card, documents are packed for Luthier's own attention")
    if installed:
        return Finding("ok", subject, f"flash-attn {installed} is installed; the fastest attention is found by timing")
    least = _tables()["capabilities"]["flash_attention"]
    if all(card.capability and _capability(card.capability) < _capability(least) for card in cards):
        return Finding("ok", subject, f"none is needed: it is for compute capability {least} and newer")
    own = "none is needed: this torch has an attention for packed documents of its own" if build.has_varlen else "Luthier works without"
    wheel = wheel_of_flash_attention(build, python or f"{sys.version_info.major}.{sys.version_info.minor}", machine or _machine())
    if wheel:
        return Finding("ok", subject, f"{own}; the wheel that fits: pip install {wheel}", details={"wheel": wheel})
    table = _tables()["flash_attention"]
    made_for = (
        f"CUDA {', '.join(table['cuda'])}, torch {table['torch'][0]} to {table['torch'][-1]}, Python {table['python'][0]} to {table['python'][-1]}"
    )
    return Finding("ok", subject, f"{own}; no published wheel of flash-attn {table['version']} fits (they are for {made_for}, {table['machine']})")


def wheel_of_flash_attention(build: Build, python: str, machine: str) -> str:
    """The address of the wheel that its authors publish for this torch, CUDA, ABI, Python and machine; "" where there is none."""
    table = _tables()["flash_attention"]
    cuda, torch = build.cuda.partition(".")[0], ".".join(build.version.split(".")[:2])
    if cuda not in table["cuda"] or torch not in table["torch"] or python not in table["python"] or machine != table["machine"]:
        return ""
    tag = f"cp{python.replace('.', '')}"
    abi = str(build.cxx11_abi).upper()
    name = f"flash_attn-{table['version']}+cu{cuda}torch{torch}cxx11abi{abi}-{tag}-{tag}-{machine}.whl"
    return f"https://github.com/Dao-AILab/flash-attention/releases/download/v{table['version']}/{name}"


def _machine() -> str:
    return f"{platform.system()}_{platform.machine()}".lower()
