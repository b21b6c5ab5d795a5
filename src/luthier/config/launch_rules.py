"""Settings of several devices, and of one model over several places, that cannot stand together."""

from collections.abc import Iterator, Mapping

from luthier.config.launch import bounds_of
from luthier.config.settings import Settings

# Methods that read a block's weights only while it computes, and train none of them.
OVER_PLACES = ("lora", "bottleneck", "prefix", "prompt", "p_tuning", "ia3")
# Methods whose layers can be cut over devices.
CUT_LAYERS = ("lora", "full")
# Ways to share the weights in which each device has a part of them.
PARTS = ("fsdp", "hsdp")
# Starts of LoRA that do not look at the weights.
BLIND_STARTS = ("default", "orthogonal")


def one_process(settings: Settings) -> bool:
    """Whether the settings ask for a single process on a single host (devices: auto may turn out as one)."""
    return settings.devices == 1 and bounds_of(settings.nodes)[1] == 1


def clashes(settings: Settings, given: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """What cannot stand together: the setting's dotted name, the problem, the next step. `given` has the names that were written."""
    alone = one_process(settings)
    if settings.device_map is not None and not alone:
        yield "device_map", "device_map places one model for one process, and devices or nodes ask for several", "keep one of the two"
    yield from _of_places(settings)
    yield from _of_teams(settings)
    yield from _of_layers(settings)
    if settings.wrapping != "auto" and alone:
        yield "wrapping", f"wrapping: {settings.wrapping} has no effect with devices: 1 and nodes: 1", "devices: 2, or take wrapping out"
    if settings.launch.head is not None and bounds_of(settings.nodes)[1] == 1:
        yield "launch.head", "launch.head has no effect with nodes: 1", "nodes: 2, or take it out"
    if settings.launch.cpu_offload is True and settings.wrapping not in PARTS:
        problem = f"launch.cpu_offload: true is for wrapping: fsdp and hsdp, and wrapping is {settings.wrapping}"
        yield "launch.cpu_offload", problem, "devices: 2 and wrapping: fsdp, or launch.cpu_offload: auto"
    if settings.device == "mps" and not alone:
        yield "devices", "mps is one device, and has no group of processes", "devices: 1, or device: cpu"


def _of_teams(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """Devices that share each micro-batch."""
    name, size = "sequence_parallel", settings.sequence_parallel
    if size == 1:
        return
    off = "sequence_parallel: 1"
    if settings.devices != "auto" and settings.devices % size:
        yield name, f"devices: {settings.devices} cannot be cut into teams of sequence_parallel: {size}", f"devices: {size}, or {off}"
    if settings.objective != "sft":
        yield name, f"sequence_parallel: {size} is for objective: sft, and not for {settings.objective}", off
    if settings.virtual_tokens:
        yield name, f"method: {settings.method} puts virtual tokens before every row, which ranks cannot share", f"method: lora, or {off}"
    if settings.training.attn_implementation != "auto":
        asked = settings.training.attn_implementation
        yield name, f"attn_implementation: {asked} runs each row by itself, and whole", f"attn_implementation: auto, or {off}"
    if settings.training.cache_frozen_layers:
        yield name, "cache_frozen_layers keeps whole rows, which no rank has", f"cache_frozen_layers: false, or {off}"


def _of_layers(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """Layers that are cut over the devices of a host."""
    if settings.wrapping != "tp":
        return
    name, off = "wrapping", "wrapping: auto"
    if settings.devices == "auto":
        yield name, "wrapping: tp deals the heads to devices, and devices: auto is known only when the run starts", f"devices: 2, or {off}"
    if bounds_of(settings.nodes)[1] > 1:
        yield name, "wrapping: tp is for the devices of one host: they meet several times in every layer", f"nodes: 1, or {off}"
    if settings.objective != "sft":
        yield name, f"wrapping: tp is for objective: sft, and not for {settings.objective}", off
    if settings.method not in CUT_LAYERS or settings.lora.use_dora:
        method = "lora with use_dora" if settings.lora.use_dora else settings.method
        yield name, f"wrapping: tp cuts plain layers, their weights or plain LoRA's, and not those of method: {method}", f"method: lora, or {off}"
    if settings.training.frozen_base == "fp8":
        yield name, "frozen_base: fp8 makes another form of layers that wrapping: tp cuts", f"frozen_base: bf16, or {off}"
    if settings.sequence_parallel > 1:
        yield name, "wrapping: tp runs each row by itself, and sequence_parallel runs rows together", "keep one of the two"
    if settings.training.neftune_noise_alpha:
        yield name, "wrapping: tp was not shown to draw neftune_noise_alpha as one process does", f"neftune_noise_alpha: 0, or {off}"


def _of_places(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """Blocks that lie elsewhere are there only while they compute."""
    if settings.device_map == "cpu" and settings.device not in ("auto", "cpu"):
        yield "device_map", f"device_map: cpu and device: {settings.device} say different things", "keep one of the two"
    if settings.device_map in (None, "cpu"):
        return
    if settings.method not in OVER_PLACES or settings.lora.use_dora:
        method = "lora with use_dora" if settings.lora.use_dora else settings.method
        yield "device_map", f"method: {method} reads or trains weights of blocks that lie elsewhere", "method: lora, or take device_map out"
    if settings.method == "lora" and settings.lora.init_lora_weights not in BLIND_STARTS:
        how = settings.lora.init_lora_weights
        yield "device_map", f"init_lora_weights: {how} starts from weights that lie elsewhere", "init_lora_weights: default, or take device_map out"
    if settings.training.frozen_base == "fp8":
        yield "device_map", "frozen_base: fp8 makes another form of weights that lie elsewhere", "frozen_base: bf16, or take device_map out"
