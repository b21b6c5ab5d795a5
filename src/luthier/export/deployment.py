"""`luthier export --for`: what a use asks for, which artifact that is, and why. A table with the method's own limits beside it."""

from dataclasses import dataclass

from luthier.config.methods import Method


@dataclass(frozen=True, slots=True)
class Choice:
    """What is exported: a target, its number format ("": the usual one), and the reason."""

    to: str
    stored: str
    why: str


# use            on a GPU, and on a CPU
USES: dict[str, tuple[Choice, Choice]] = {
    "low-latency": (
        Choice("merged", "bf16", "merged weights have no adapter to compute beside each layer"),
        Choice("gguf", "q8_0", "merged weights have no adapter to compute beside each layer, and on a CPU llama.cpp reads 8 bits fastest"),
    ),
    "memory": (
        Choice("awq", "", "4 bits a weight, chosen by the activations, take a quarter of bf16; vLLM computes with them"),
        Choice("gguf", "q4_k_m", "4 to 5 bits a weight take under a third of bf16, and llama.cpp needs little beside them"),
    ),
    "multi-task": (
        Choice("adapter", "", "one base stays loaded, and each request names its adapter: luthier serve, vLLM, SGLang and LoRAX do that"),
        Choice("adapter", "", "one base stays loaded, and each request names its adapter: luthier serve does that on a CPU"),
    ),
    "production": (
        Choice("merged", "bf16", "one ordinary model that vLLM and SGLang batch continuously, without settings of its own"),
        Choice("gguf", "q8_0", "one file that llama.cpp serves to several at once, with nearly the answers of bf16"),
    ),
}


def choose(use: str, method: Method, gpu: bool) -> Choice:
    """The artifact for a use of USES, for a run of this method, to be served on a GPU or on a CPU."""
    wanted = USES[use][0 if gpu else 1]
    if wanted.to == "adapter" and method.leaves == "model":
        return Choice("merged", "bf16", "every weight was trained, so each task has a model of its own: there is no adapter to choose for a request")
    if wanted.to != "adapter" and method.leaves == "adapter" and not method.merges:
        return Choice("adapter", "", f"method: {method.name} cannot be merged into its base; luthier serve applies it")
    if wanted.to == "adapter" and not method.per_request:
        return Choice("merged", "bf16", f"no server chooses an adapter of method: {method.name} for a request, so each task has a merged model")
    return wanted
