"""Memory that is not enough: the same update again in smaller micro-batches, or a clear end."""

import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest_engine import furthest, gradients, open_tiny, ragged

from luthier.engine import Engine, generate, optimizers, shortage, update
from luthier.engine.batches import Document
from luthier.engine.packed import Packed
from luthier.errors import DataError, OutOfMemory, is_shortage
from luthier.records import Source, TokenizedExample

TOTAL = 100_000
OF_A_CPU = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8589934592 bytes."


class _FailsGoingBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's collection of all that a test process holds takes longer than these updates."""
    if "held" not in request.function.__name__:
        monkeypatch.setattr(shortage, "collect", lambda: None)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, str], list[int]]:
    """A memory for so many tokens at once, which is too little going forward or backward; gives the tokens of every pass."""
    honest = update.run_packed

    def limit(most: int, where: str) -> list[int]:
        seen: list[int] = []

        def run_packed(model: Any, documents: list[Document], layout: Packed) -> torch.Tensor:
            tokens = sum(len(one.inputs) for one in documents)
            seen.append(tokens)
            if tokens > most and (where == "forward" or not torch.is_grad_enabled()):
                raise RuntimeError(OF_A_CPU)
            hidden = honest(model, documents, layout)
            return _FailsGoingBack.apply(hidden) if tokens > most else hidden  # type: ignore[no-untyped-call]

        monkeypatch.setattr(update, "run_packed", run_packed)
        return seen

    return limit


def learned(engine: Engine, rows: list[TokenizedExample], seed: int = 5) -> tuple[float, list[float] | None, dict[str, torch.Tensor]]:
    torch.manual_seed(seed)
    measured = engine.forward_backward(rows, row_losses=True)
    return measured.loss, measured.row_losses, gradients(engine)


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize(("dropout", "prefix"), [(0.0, 0), (0.0, 30), (0.25, 0)])
def test_the_same_update_is_run_again_in_halves(
    where: str, dropout: float, prefix: int, tiny_model: Path, memory: Callable[[int, str], list[int]]
) -> None:
    rows = ragged(seed=3, rows=12, prefix=prefix)
    loss, of_rows, wanted = learned(open_tiny(tiny_model, dropout, micro_batch_tokens=TOTAL), rows)
    engine = open_tiny(tiny_model, dropout, micro_batch_tokens=TOTAL)
    seen = memory(100, where)
    again, of_rows_again, found = learned(engine, rows)
    assert max(seen) > 150, "it was tried as it was laid out, half in each lane"
    assert max(seen[-3:]) <= 100
    assert abs(again - loss) <= 1e-6 * loss
    assert of_rows_again == pytest.approx(of_rows, rel=1e-5)
    assert furthest(found, wanted) <= 1e-6
    assert max(seen) // 8 <= engine.micro_batch_tokens <= 200


def test_what_was_gathered_before_the_memory_ended_is_not_counted_twice(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ragged(seed=4, rows=12)
    loss, _, wanted = learned(open_tiny(tiny_model, 0.25, micro_batch_tokens=60), rows)
    engine = open_tiny(tiny_model, 0.25, micro_batch_tokens=60)
    honest, calls = update.run_packed, []

    def third_fails(model: Any, documents: list[Document], layout: Packed) -> torch.Tensor:
        calls.append(len(documents))
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(model, documents, layout)

    monkeypatch.setattr(update, "run_packed", third_fails)
    again, _, found = learned(engine, rows)
    assert len(calls) > 6
    assert abs(again - loss) <= 1e-6 * loss
    assert furthest(found, wanted) <= 1e-6


def test_the_rest_of_the_run_keeps_what_was_enough(engine: Engine, memory: Callable[[int, str], list[int]]) -> None:
    engine.micro_batch_tokens = TOTAL
    seen = memory(100, "forward")
    learned(engine, ragged(seed=3, rows=12))
    kept = engine.micro_batch_tokens
    seen.clear()
    learned(engine, ragged(seed=5, rows=12))
    assert engine.micro_batch_tokens == kept
    assert max(seen) <= 100


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_rows_that_are_compared_stay_together(where: str, tiny_model: Path, memory: Callable[[int, str], list[int]]) -> None:
    rows = ragged(seed=6, rows=12)
    together = [[place, place + 1] for place in range(0, 12, 2)]

    def loss_of(places: list[int], logps: torch.Tensor) -> torch.Tensor:
        assert all(place ^ 1 in places for place in places)
        at = {place: index for index, place in enumerate(places)}
        pairs = [(at[place], at[place + 1]) for place in places if place % 2 == 0]
        return torch.stack([-torch.nn.functional.logsigmoid(logps[one] - logps[other]) for one, other in pairs]).sum() / 6

    def judged(engine: Engine) -> tuple[float, dict[str, torch.Tensor]]:
        return engine.forward_backward_judged(rows, together, loss_of).loss, gradients(engine)

    loss, wanted = judged(open_tiny(tiny_model, micro_batch_tokens=TOTAL, share_prefixes=False))
    engine = open_tiny(tiny_model, micro_batch_tokens=TOTAL, share_prefixes=False)
    memory(130, where)
    again, found = judged(engine)
    assert again == pytest.approx(loss, rel=1e-6)
    assert furthest(found, wanted) <= 1e-6
    assert engine.micro_batch_tokens <= 260


def test_one_row_that_does_not_fit_ends_it_and_is_named(engine: Engine, memory: Callable[[int, str], list[int]]) -> None:
    rows = ragged(seed=3, rows=6)
    longest = max(rows, key=lambda row: row.tokens)
    memory(20, "forward")
    with pytest.raises(OutOfMemory) as caught:
        engine.forward_backward(rows)
    assert caught.value.exit_code == 5
    assert caught.value.problem == f"the memory is not enough for one row of {longest.tokens} tokens, alone"
    assert caught.value.where == str(longest.source)
    assert "gradient_checkpointing" in caught.value.next_step
    assert all(parameter.grad is None for parameter in engine.trained_parameters)


def test_the_plain_path_runs_rows_alone_already(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_tiny(tiny_model, attn_implementation="eager")

    def too_much(*given: Any, **named: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine.model, "forward", too_much)
    with pytest.raises(OutOfMemory, match="one row of"):
        engine.forward_backward(ragged(seed=3, rows=4))


def test_gradients_of_an_earlier_call_are_not_mixed_up_with_half_of_this_one(engine: Engine, memory: Callable[[int, str], list[int]]) -> None:
    engine.forward_backward(ragged(seed=3, rows=2))
    memory(50, "forward")
    with pytest.raises(OutOfMemory, match="gradients of earlier calls wait"):
        engine.forward_backward(ragged(seed=3, rows=12))


@pytest.mark.parametrize("measure", [Engine.held_out_loss, Engine.log_probabilities])
def test_an_evaluation_is_run_again_and_leaves_what_was_learned(measure: Any, tiny_model: Path, memory: Callable[[int, str], list[int]]) -> None:
    rows = ragged(seed=3, rows=40)
    engine = open_tiny(tiny_model, micro_batch_tokens=TOTAL)
    wanted = measure(engine, rows)
    engine.forward_backward(rows)
    before = {name: parameter.grad.clone() for name, parameter in engine.model.named_parameters() if parameter.grad is not None}
    memory(100, "forward")
    assert measure(engine, rows) == pytest.approx(wanted, rel=1e-6)
    assert engine.model.training
    assert furthest(gradients(engine), before) == 0.0


def test_answers_are_made_in_smaller_batches_and_are_the_same(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [row.token_ids for row in ragged(seed=7, rows=9)]
    wanted = engine.answer(prompts, max_new_tokens=8)
    honest, rows_at_once = generate.Fast.begin, []

    def begin(runner: generate.Fast, prompts: list[list[int]], room: int) -> torch.Tensor:
        rows_at_once.append(len(prompts))
        if len(prompts) > 3:
            raise RuntimeError(OF_A_CPU)
        return honest(runner, prompts, room)

    monkeypatch.setattr(generate.Fast, "begin", begin)
    done: list[int] = []
    assert engine.answer(prompts, max_new_tokens=8, on_answers=done.append) == wanted
    assert (rows_at_once[0], done[-1]) == (9, 9)
    assert engine.answer(prompts[:1], max_new_tokens=8) == wanted[:1]

    def never(runner: generate.Fast, prompts: list[list[int]], room: int) -> torch.Tensor:
        raise RuntimeError(OF_A_CPU)

    monkeypatch.setattr(generate.Fast, "begin", never)
    with pytest.raises(OutOfMemory, match="an answer of up to 8 tokens to a prompt of"):
        engine.answer(prompts, max_new_tokens=8)


def test_an_optimizer_that_finds_no_memory_ends_clearly(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> float:
        raise RuntimeError(OF_A_CPU)

    monkeypatch.setattr(optimizers, "step", fail)
    engine.forward_backward(ragged(seed=3, rows=2))
    with pytest.raises(OutOfMemory) as caught:
        engine.optimizer_step(1e-3)
    assert "the optimizer's step" in caught.value.problem
    assert "adamw_8bit" in caught.value.next_step


def test_nothing_of_a_failed_attempt_is_held(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_tiny(tiny_model, micro_batch_tokens=TOTAL)
    layers = engine.model.get_base_model().model.layers
    held: list[weakref.ref[torch.Tensor]] = []
    honest, norm = layers[1].forward, type(layers[1].self_attn).forward

    def keep(hidden: torch.Tensor, *given: Any, **named: Any) -> Any:
        if hidden.requires_grad and hidden.shape[1] > 100:
            held.append(weakref.ref(hidden))
        return honest(hidden, *given, **named)

    def fail(module: Any, *given: Any, **named: Any) -> Any:
        found = norm(module, *given, **named)
        if module is layers[1].self_attn and found[0].shape[1] > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    collect, attempts = shortage.collect, []

    def collected() -> None:
        collect()
        attempts.append(len(held))
        assert all(one() is None for one in held), "the failed attempt's activations still lie in memory"

    monkeypatch.setattr(layers[1], "forward", keep)
    monkeypatch.setattr(type(layers[1].self_attn), "forward", fail)
    monkeypatch.setattr(shortage, "collect", collected)
    engine.forward_backward(ragged(seed=3, rows=12))
    assert attempts
    assert held


def test_other_errors_stay_what_they_are(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(update, "run_packed", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        engine.forward_backward(ragged(seed=3, rows=2))
    assert engine.micro_batch_tokens == 4096


def test_a_row_without_a_trained_token_is_named_and_not_learned(engine: Engine) -> None:
    rows = [*ragged(seed=3, rows=2), TokenizedExample([5, 6, 7], [True, False, False], Source("rows.jsonl", 17))]
    with pytest.raises(DataError, match=r"rows\.jsonl:17: no token after its first one is trained"):
        engine.forward_backward(rows)


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), True),
        (RuntimeError(OF_A_CPU), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("expected scalar type Half"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_a_shortage(error: Exception, short: bool) -> None:
    assert is_shortage(error) == short


REAL = """
import resource, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from conftest_engine import furthest, gradients, open_tiny, ragged
rows = [row for seed in range(24) for row in ragged(seed, rows=1, prefix=400, longest=60)]
def learn(engine):
    return engine.forward_backward(rows).loss, gradients(engine)
few = open_tiny(Path({model!r}), share_prefixes=False, micro_batch_tokens=1000)
loss, wanted = learn(few)
engine = open_tiny(Path({model!r}), share_prefixes=False, micro_batch_tokens=100_000)
used = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (used + 60_000_000, resource.RLIM_INFINITY))
again, found = learn(engine)
resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(engine.micro_batch_tokens, abs(again - loss) / loss, furthest(found, wanted))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux holds a process to RLIMIT_DATA")
def test_a_memory_that_is_really_too_small(tiny_model: Path) -> None:
    code = REAL.format(tests=str(Path(__file__).parent), model=str(tiny_model))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    budget, loss_difference, gradient_difference = (float(word) for word in done.stdout.split()[-3:])
    assert budget < 11_000
    assert loss_difference <= 1e-6
    assert gradient_difference <= 1e-6
