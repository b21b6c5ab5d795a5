"""Requests that come and go at any time, each with its own adapter, are answered as if each were alone."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from test_generate import ARCHITECTURES, SIZES, of_transformers, prompts_of

from luthier import files
from luthier.config.settings import Settings
from luthier.engine import Engine, attention, generate, row_adapters
from luthier.engine.by_row import RowAdapter
from luthier.engine.continuous import Continuous, Request
from luthier.engine.generate import How
from luthier.engine.sampling import Sampling
from luthier.errors import DataError, ModelError
from luthier.models import adapters, load, methods

NO_STOP: frozenset[int] = frozenset()
SETTINGS = {"model": "base", "data": {"train": "rows.jsonl"}}
# name          method        its section                                             how much its tensors are shaken
KINDS: dict[str, tuple[str, dict[str, Any], float]] = {
    "lora":       ("lora",       {"lora": {"r": 4, "lora_alpha": 8}}, 0.1),
    "wide":       ("lora",       {"lora": {"r": 8, "lora_alpha": 8, "use_rslora": True, "target_modules": ["q_proj", "down_proj"]}}, 0.1),
    "patterns":   ("lora",       {"lora": {"r": 4, "lora_alpha": 8, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 32}}}, 0.1),
    "houlsby":    ("bottleneck", {"bottleneck": {"kind": "houlsby", "reduction_factor": 8}}, 0.3),
    "parallel":   ("bottleneck", {"bottleneck": {"kind": "parallel", "reduction_factor": 8, "scaling": 2.0}}, 0.3),
    "prefix":     ("prefix",     {"prefix": {"num_virtual_tokens": 5}}, 1.0),
    "prompt":     ("prompt",     {"prompt": {"num_virtual_tokens": 4}}, 1.0),
    "p_tuning":   ("p_tuning",   {"p_tuning": {"num_virtual_tokens": 6}}, 1.0),
}  # fmt: skip


def make(base: Path, folder: Path, kind: str, seed: int = 0) -> Path:
    """An adapter that changes what the model says, stored as a run would."""
    method, section, shaken = KINDS[kind]
    settings = Settings.model_validate(SETTINGS | {"method": method, **section})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = methods.add(load.load_model(base, "fp32", "cpu"), settings)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * shaken)
    adapters.save_adapter(model, folder, str(base))
    return folder


@pytest.fixture(scope="module")
def folders(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("adapters")
    return {kind: make(tiny_model, home / kind, kind, seed) for seed, kind in enumerate(KINDS)}


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Engine:
    return Engine(load.load_model(tiny_model, "fp32", "cpu").requires_grad_(False).eval(), load.load_tokenizer(tiny_model))


@pytest.fixture(scope="module")
def by_kind(base: Engine, folders: dict[str, Path]) -> dict[str, RowAdapter | None]:
    return {"base": None} | {kind: row_adapters.load(base.model, folder) for kind, folder in folders.items()}


@pytest.fixture
def server(base: Engine) -> Iterator[Continuous]:
    made = Continuous(base.model, slots=4, chunk_tokens=16)
    yield made
    made.by_row.give_back()


def alone(tiny_model: Path, folder: Path | None, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    """What the engine answers with this one adapter, a prompt at a time."""
    model = load.load_model(tiny_model, "fp32", "cpu")
    model = adapters.load_adapter(model, folder, trainable=False) if folder else model
    engine = Engine(model.eval(), load.load_tokenizer(tiny_model))
    return [generate.answer(engine.model, [prompt], How(NO_STOP), new_tokens)[0] for prompt in prompts]


def finish(server: Continuous) -> None:
    for _ in range(1000):
        if server.idle:
            return
        server.step()
    raise AssertionError("it does not end")


def test_every_request_is_answered_as_if_it_were_alone(
    tiny_model: Path, folders: dict[str, Path], by_kind: dict[str, RowAdapter | None], server: Continuous
) -> None:
    prompts = prompts_of(12, 0, seed=3) + prompts_of(6, 30, seed=4)
    kinds = [[*by_kind][place % len(by_kind)] for place in range(len(prompts))]
    requests = [
        Request(prompt, 8 + place % 5, NO_STOP, adapter=by_kind[kind]) for place, (prompt, kind) in enumerate(zip(prompts, kinds, strict=True))
    ]
    order = random.Random(0)
    left = list(requests)
    while left or not server.idle:  # they come a few at a time, while others are answered
        for _ in range(min(len(left), order.randint(0, 2))):
            server.add(left.pop(0))
        server.step()
    expected = {kind: alone(tiny_model, folders.get(kind), [p for p, k in zip(prompts, kinds, strict=True) if k == kind], 12) for kind in by_kind}
    for kind in by_kind:
        found = [request for request, own in zip(requests, kinds, strict=True) if own == kind]
        assert [request.answer for request in found] == [answer[: request.limit] for answer, request in zip(expected[kind], found, strict=True)], kind
    assert {request.finish for request in requests} == {"length"}
    first = {kind: alone(tiny_model, folders.get(kind), prompts[:1], 12)[0] for kind in by_kind}
    assert len({tuple(answer) for answer in first.values()}) == len(first)  # no adapter answers as another or as the base


def test_what_was_run_is_used_again_by_the_same_adapter_alone(server: Continuous, by_kind: dict[str, RowAdapter | None]) -> None:
    beginning = prompts_of(1, 40)[0][:40]
    asked = [
        Request([*beginning, 50 + n], 4, NO_STOP, adapter=by_kind[kind]) for n, kind in enumerate(["lora", "lora", "base", "wide", "lora", "base"])
    ]
    for request in asked:
        server.add(request)
        finish(server)
    assert [request.reused_tokens for request in asked] == [0, 40, 0, 0, 40, 40]


def test_a_beginning_that_is_being_answered_is_copied(tiny_model: Path, server: Continuous) -> None:
    beginning = prompts_of(1, 40)[0][:40]
    first, second = Request([*beginning, 50], 20, NO_STOP), Request([*beginning, 60, 61], 6, NO_STOP)
    server.add(first)
    for _ in range(5):
        server.step()
    server.add(second)
    finish(server)
    assert second.reused_tokens == 40
    assert [first.answer, second.answer] == [alone(tiny_model, None, [one.prompt], one.limit)[0] for one in (first, second)]


def test_a_long_prompt_does_not_make_the_others_wait(server: Continuous) -> None:
    short, long = Request(prompts_of(1, 5)[0], 30, NO_STOP), Request(list(range(3, 203)), 3, NO_STOP)
    server.add(short)
    server.step()
    server.step()
    server.add(long)
    before = len(short.answer)
    for _ in range(5):
        server.step()
    assert len(short.answer) == before + 5
    assert not long.answer
    finish(server)
    assert len(long.answer) == 3


def test_more_requests_than_slots_wait_for_their_turn(server: Continuous, tiny_model: Path) -> None:
    prompts = prompts_of(11, 3)
    requests = [Request(prompt, 5, NO_STOP) for prompt in prompts]
    for request in requests:
        server.add(request)
    server.step()
    assert len(server.running) == 4
    finish(server)
    assert [request.answer for request in requests] == alone(tiny_model, None, prompts, 5)


def test_a_cancelled_request_frees_its_slot_and_changes_no_other(server: Continuous, tiny_model: Path) -> None:
    prompts = prompts_of(6, 3)
    requests = [Request(prompt, 9, NO_STOP) for prompt in prompts]
    for request in requests:
        server.add(request)
    server.step()
    server.step()
    server.cancel(requests[1])
    server.cancel(requests[5])  # it still waits
    finish(server)
    assert [requests[place].finish for place in (1, 5)] == ["cancelled", "cancelled"]
    assert len(requests[1].answer) < 9
    expected = alone(tiny_model, None, prompts, 9)
    assert [requests[place].answer for place in (0, 2, 3, 4)] == [expected[place] for place in (0, 2, 3, 4)]
    assert not any(held.busy for held in server.held)


def test_an_answer_ends_at_a_stop_token_or_where_its_text_says(server: Continuous, tiny_model: Path) -> None:
    prompt = prompts_of(1, 3)[0]
    free = alone(tiny_model, None, [prompt], 12)[0]
    place = next(place for place in range(3, 12) if free[place] not in free[:place])
    stopped = Request(prompt, 12, frozenset({free[place]}))
    ended = Request(prompt, 12, NO_STOP, ended=lambda ids: free[place] in ids)
    server.add(stopped)
    server.add(ended)
    finish(server)
    assert [stopped.answer, stopped.finish] == [free[:place], "stop"]
    assert [ended.answer, ended.finish] == [free[: place + 1], "stop"]


def test_draws_are_those_of_the_seed_whatever_stands_beside(server: Continuous, base: Engine) -> None:
    prompts = prompts_of(5, 4)
    sampling = Sampling(temperature=1.5, top_p=0.9, top_k=40, seed=3, repetition_penalty=1.2)
    expected = [generate.answer(base.model, [prompt], How(NO_STOP, sampling), 8)[0] for prompt in prompts]
    requests = [Request(prompt, 8, NO_STOP, sampling) for prompt in prompts] + [Request(prompts[0], 8, NO_STOP)]
    for request in requests:
        server.add(request)
    finish(server)
    assert [request.answer for request in requests[:5]] == expected
    assert requests[5].answer != expected[0]


def test_log_probabilities_are_those_of_the_model(server: Continuous, base: Engine) -> None:
    prompt = prompts_of(1, 4)[0]
    request = Request(prompt, 4, NO_STOP, log_probabilities=3)
    server.add(request)
    said = [one for _ in range(8) for _, one in server.step() if one is not None]
    with torch.no_grad():
        logits = base.model(input_ids=torch.tensor([prompt + request.answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    for place, one in enumerate(said):
        assert one.token == request.answer[place]
        assert one.log_probability == pytest.approx(float(logits[place, one.token]), abs=1e-4)
        assert [token for token, _ in one.likeliest] == logits[place].topk(3).indices.tolist()


def test_a_bent_distribution_is_one_requests_own(server: Continuous, tiny_model: Path) -> None:
    prompt = prompts_of(1, 4)[0]
    only = 77

    def bend(logits: torch.Tensor, answer: list[int]) -> torch.Tensor:
        return torch.full_like(logits, -torch.inf).index_fill_(0, torch.tensor([only]), 0.0)

    bent, free = Request(prompt, 3, NO_STOP, bend=bend), Request(prompt, 3, NO_STOP)
    server.add(bent)
    server.add(free)
    finish(server)
    assert bent.answer == [only] * 3
    assert free.answer == alone(tiny_model, None, [prompt], 3)[0]


def test_numbers_that_overflow_end_their_own_request_and_leave_nothing(
    server: Continuous, tiny_model: Path, folders: dict[str, Path], base: Engine, tmp_path: Path
) -> None:
    huge = tmp_path / "huge"
    huge.mkdir()
    save_file({name: tensor * 0 + 3e38 for name, tensor in load_file(folders["lora"] / adapters.WEIGHTS).items()}, huge / adapters.WEIGHTS)
    (huge / adapters.CONFIG).write_bytes((folders["lora"] / adapters.CONFIG).read_bytes())
    overflowing, plain = row_adapters.load(base.model, huge), row_adapters.load(base.model, folders["wide"])
    prompts = prompts_of(5, 3)
    failing = [Request(prompts[0], 6, NO_STOP, adapter=overflowing) for _ in range(4)]
    beside = Request(prompts[1], 6, NO_STOP, adapter=plain)
    for request in [failing[0], beside, *failing[1:]]:
        server.add(request)
    finish(server)
    assert [request.finish for request in failing] == ["failed"] * 4
    assert beside.answer == alone(tiny_model, folders["wide"], [prompts[1]], 6)[0]
    after = [Request(prompt, 6, NO_STOP) for prompt in [*prompts[2:], list(range(3, 60))]]
    for request in after:
        server.add(request)
    finish(server)
    assert [request.answer for request in after] == [alone(tiny_model, None, [request.prompt], 6)[0] for request in after]


def test_what_is_kept_is_one_tenants_own(server: Continuous) -> None:
    prompt = prompts_of(1, 40)[0]
    asked = [Request(prompt, 2, NO_STOP, tenant=tenant) for tenant in ("alice", "bob", "alice")]
    for request in asked:
        server.add(request)
        finish(server)
    assert [request.reused_tokens for request in asked] == [0, 0, len(prompt) - 1]


def test_a_long_request_takes_room_for_itself_alone(server: Continuous, tiny_model: Path) -> None:
    prompts = [prompts_of(1, 290)[0], *prompts_of(3, 4)]
    requests = [Request(prompt, 6, NO_STOP) for prompt in prompts]
    for request in requests:
        server.add(request)
    finish(server)
    rows = {length: len(shelf.slots) for length, shelf in server.slots.shelves.items()}
    assert rows.keys() == {512, 256}
    assert rows[512] == 1
    assert [request.answer for request in requests] == alone(tiny_model, None, prompts, 6)


def test_more_than_there_is_room_for_waits_and_is_answered_all_the_same(
    base: Engine, tiny_model: Path, folders: dict[str, Path], by_kind: dict[str, RowAdapter | None]
) -> None:
    server = Continuous(base.model, slots=4, chunk_tokens=64, most_places=768)  # three short ones, or a short and a longer one
    prompts, limits = [*prompts_of(2, 240, seed=1), *prompts_of(5, 6, seed=2)], [40, 30, 8, 8, 8, 8, 8]
    kinds = ["base", "prefix", "lora", "base", "prefix", "base", "lora"]
    requests = [Request(prompt, limit, NO_STOP, adapter=by_kind[kind]) for prompt, limit, kind in zip(prompts, limits, kinds, strict=True)]
    for request in requests:
        server.add(request)
    put_back, most = 0, 0
    for _ in range(1000):
        before = set(server.running)
        server.step()
        put_back += len([request for request in before if not request.finish and request not in server.running])
        most = max(most, server.slots.places)
        if server.idle:
            break
    server.by_row.give_back()
    assert server.idle
    assert put_back  # both long ones outgrow 256 places, and two of 512 do not fit
    assert most <= 768
    for request, kind in zip(requests, kinds, strict=True):
        assert request.answer == alone(tiny_model, folders.get(kind), [request.prompt], request.limit)[0], kind
    with pytest.raises(DataError, match="room for 768"):
        server.add(Request(prompts[0], 600, NO_STOP))


def test_the_room_that_is_kept_does_not_grow_with_the_requests(server: Continuous) -> None:
    lengths = random.Random(5)
    for count in (20, 60):
        for prompt in prompts_of(count, 3, seed=count):
            server.add(Request(prompt + [7] * lengths.choice((0, 290)), 3, NO_STOP))
        finish(server)
        assert len(server.held) <= 4
        assert server.slots.places <= 4 * (256 + 512)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(DataError, match="no tokens"):
        Request([], 3, NO_STOP)


@pytest.mark.parametrize("name", ["mistral", "gemma2", "qwen3", "gpt2", "cohere2"])
def test_windows_caps_and_grouped_heads(name: str) -> None:
    kind, own = ARCHITECTURES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**SIZES | own)).eval()
    prompts = prompts_of(5, 20)
    model.set_attn_implementation("eager")
    expected = of_transformers(model, prompts, 10)
    model.set_attn_implementation(attention.DOORS["eager"])
    server = Continuous(model, slots=3, chunk_tokens=7)
    requests = [Request(prompt, 10, NO_STOP) for prompt in prompts]
    for request in requests:
        server.add(request)
    finish(server)
    assert [request.answer for request in requests] == expected


def test_what_a_server_cannot_choose_for_each_request_is_refused(base: Engine, folders: dict[str, Path], tmp_path: Path) -> None:
    def changed(config: dict[str, Any], /, **tensors: torch.Tensor) -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        stored = load_file(folders["lora"] / adapters.WEIGHTS)
        save_file(stored | tensors, folder / adapters.WEIGHTS)
        files.write_json(folder / adapters.CONFIG, files.read_json(folders["lora"] / adapters.CONFIG) | config)
        return folder

    ia3 = methods.add(load.load_model(Path(base.model.name_or_path), "fp32", "cpu"), Settings.model_validate(SETTINGS | {"method": "ia3"}))
    adapters.save_adapter(ia3, tmp_path / "ia3", "base")
    head = "base_model.model.lm_head.lora_"
    some = next(name for name in load_file(folders["lora"] / adapters.WEIGHTS) if name.endswith("lora_A.weight"))
    for folder, said in {
        tmp_path / "ia3": "kind IA3",
        changed({}, **{some.replace("lora_A.weight", "lora_magnitude_vector.weight"): torch.ones(8)}): "more than LoRA adds",
        changed({}, **{some: torch.zeros(4, 7)}): "takes",
        changed({}, **{some.replace("layers.0", "layers.9"): torch.zeros(4, 7)}): "layers.9",
        changed({}, **{some: torch.full_like(load_file(folders["lora"] / adapters.WEIGHTS)[some], torch.nan)}): "not finite",
        changed({}, **{f"{head}A.weight": torch.zeros(4, 64), f"{head}B.weight": torch.zeros(500, 4)}): "the head",
        changed({"init_lora_weights": "pissa"}): "changes the base",
        changed({"alora_invocation_tokens": [5]}): "more than LoRA adds",
        changed({"alpha_pattern": {"(": 3}}): "cannot be read together",
    }.items():
        with pytest.raises(ModelError, match=said):
            row_adapters.load(base.model, folder)


@pytest.mark.parametrize("busy", ["lora", "houlsby"])
def test_an_adapter_that_is_read_while_others_answer_is_read_with_the_base_alone(
    base: Engine, folders: dict[str, Path], by_kind: dict[str, RowAdapter | None], busy: str
) -> None:
    server = Continuous(base.model, slots=2)
    wanted = by_kind["prompt"]
    assert wanted is not None
    for length in (4, 9):  # as many tokens as it has virtual ones, and another number
        server.add(Request(list(range(5, 5 + length)), 3, frozenset(), adapter=by_kind[busy]))
        server.step()
        read = row_adapters.load(base.model, folders["prompt"])  # its virtual tokens run through the model
        for layer, pair in read.prefix.items():
            assert all(torch.equal(one, other) for one, other in zip(pair, wanted.prefix[layer], strict=True))
    server.by_row.give_back()
