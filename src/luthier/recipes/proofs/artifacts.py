"""What leaves the training: the model that was saved, merged, and asked, against the one in memory."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from luthier.config.data import DataSettings
from luthier.config.methods import METHODS
from luthier.data.tokenize import prompt_ids
from luthier.errors import DataError
from luthier.recipes import handover
from luthier.recipes.proofs.bench import Bench, NotHere, failed, passed
from luthier.recipes.proofs.masks import SHOWN, Row, rows_of
from luthier.records import Conversation, Proof, Turn
from luthier.serve import contract
from luthier.serve.session import Session

COMPARED_ROWS = 4
REPORT = "please report it with verify.json and the versions of luthier doctor"


def merged_is_adapter(bench: Bench) -> Proof:
    """The merged model, in fp32 as it lies on the disk, against the base with its adapter: logits and greedy answers."""
    method = METHODS[bench.plan.settings.method]
    if method.leaves == "adapter" and not method.merges:
        raise NotHere(f"method: {method.name} is not merged: it trains {method.what}")
    bench.use(bench.plan)
    run = bench.save()
    _, found = handover.export(run, "merged", precision="fp32", folder=bench.scratch / "merged")
    numbers = {"max_logit_difference": found.max_logit_difference, "mean_kl": found.mean_kl, "greedy_agreement": found.greedy_agreement}
    said = (
        f"logits at most {found.max_logit_difference:.1e} apart, mean KL {found.mean_kl:.1e} nats a token, {found.greedy_agreement:.0%} equal answers"
    )
    if found.passed:
        return passed(said, **numbers)
    return failed(f"{said} (allowed {found.threshold})", "luthier export RUN --to adapter serves it unmerged; " + REPORT, **numbers)


def reloaded_is_trained(bench: Bench) -> Proof:
    """What was saved, opened anew, against the model in memory: the logits of a few rows."""
    bench.use(bench.plan)
    differences = []
    for place in range(min(COMPARED_ROWS, len(bench.ready.prepared.train))):
        ids = bench.ready.prepared.train[place].token_ids
        here, there = (_logits(engine, ids) for engine in (bench.engine, bench.reloaded))
        differences.append(float((here - there).norm() / here.norm()))
    furthest = max(differences)
    allowed = bench.tolerance.loss
    said = f"{len(differences)} rows: logits {furthest:.1e} apart (relative)"
    if furthest <= allowed:
        return passed(said, furthest=furthest)
    return failed(f"{said}, and {allowed:.0e} is allowed", "do not use what this run saves; " + REPORT, furthest=furthest)


@torch.no_grad()
def _logits(engine: Any, ids: list[int]) -> torch.Tensor:
    training = engine.model.training
    engine.model.eval()
    logits: torch.Tensor = engine.model(input_ids=torch.tensor([ids], device=engine.device), use_cache=False).logits[0]
    engine.model.train(training)
    return logits[-len(ids) :].double()


def serves_what_it_trained(bench: Bench) -> Proof:
    """The tokens before each answer, as trained, against those that luthier chat sends for the same conversation."""
    bench.use(bench.plan)
    run, engine = bench.save(), bench.reloaded
    promised = contract.read_checked(run, engine.tokenizer, engine.stop_ids)
    wrong: list[tuple[str, str]] = []
    compared = shortened = 0
    for row in rows_of(bench):
        for turns, answer in asked_in_chat(row.conversation, promised):
            found, problem = _sent_as_trained(row, turns, answer, engine, bench.plan.settings.data)
            compared, shortened = compared + found, shortened + (not found and not problem)
            if problem:
                wrong.append((str(row.source), problem))
    numbers = {"answers": compared, "shortened": shortened, "wrong": [list(one) for one in wrong[:SHOWN]]}
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        return failed(f"{wrong[0][0]}: {wrong[0][1]}{more}", "train again with the template that is served (template: FILE.jinja)", **numbers)
    if not compared:
        raise NotHere("plain texts ask nothing" if not shortened else "every row was shortened (data.too_long)")
    left_out = f"; {shortened} that data.too_long shortened are not compared" if shortened else ""
    return passed(f"{compared} prompts: the ids are the same, and each answer ends where chat stops{left_out}", **numbers)


def asked_in_chat(row: Conversation, promised: dict[str, Any]) -> Iterator[tuple[Sequence[Turn], Turn]]:
    """The turns that chat would send for each trained answer of a row, had the earlier answers been those of the row."""
    if not row.prompt:
        return
    if row.tools or any(turn.extra or turn.role == "tool" for turn in row.turns) or not promised["templated"]:
        yield row.prompt, row.turns[-1]
        return
    own = row.turns[0].content if row.turns[0].role == "system" else None
    session = Session(own, promised["templated"])
    sent: list[list[Turn]] = []
    talk = [turn for turn in row.turns if turn.role != "system"]
    if [turn.role for turn in talk] != ["user", "assistant"] * (len(talk) // 2):
        yield row.prompt, row.turns[-1]
        return
    for question, answer in zip(talk[::2], talk[1::2], strict=True):

        def say(turns: list[Turn], text: str = answer.content) -> Iterator[str]:
            sent.append(turns)
            yield text

        list(session.ask(question.content, say))
        yield sent[-1], answer


def _sent_as_trained(row: Row, turns: Sequence[Turn], answer: Turn, engine: Any, data: DataSettings) -> tuple[bool, str]:
    """Whether one example has these tokens before an answer; and what is wrong where none has."""
    if answer.trained is False:
        return False, ""
    try:
        sent = prompt_ids(turns, engine.tokenizer, row.conversation.tools)
    except DataError as error:
        return False, f"chat refuses it: {error.problem}"
    count = len(sent)
    for example in row.examples:
        if example.token_ids[:count] == sent and len(example.trained) > count and example.trained[count]:
            stretch = example.trained[count:]
            said = example.token_ids[count : count + (stretch.index(False) if False in stretch else len(stretch))]
            ends = said if data.loss_on == "all" else said[-1:]  # where everything is trained, more follows the end of the answer
            if answer.role in ("assistant", "completion") and not engine.stop_ids.intersection(ends):
                return True, f"the answer ends with {engine.tokenizer.decode(said[-1:])!r}, where chat does not stop"
            return True, ""
    if data.too_long in ("split", "truncate") or answer.role == "text" or not any(True in example.trained for example in row.examples):
        return False, ""
    if len(row.examples) == 1 and answer is not row.conversation.turns[-1] and not _is_trained(row, answer):
        return False, ""
    return False, _first_difference(row, sent, engine)


def _is_trained(row: Row, answer: Turn) -> bool:
    """Whether an earlier answer is trained at all (data.loss_on: last_assistant leaves it out, and so does a judgment)."""
    return sum(1 for one, other in zip(row.examples[0].trained, row.examples[0].trained[1:], strict=False) if other and not one) > 1


def _first_difference(row: Row, sent: list[int], engine: Any) -> str:
    """Where the sent tokens leave the trained ones."""
    trained = row.examples[-1].token_ids
    place = next((place for place, (one, other) in enumerate(zip(sent, trained, strict=False)) if one != other), min(len(sent), len(trained)))
    spelled = [repr(engine.tokenizer.decode(ids[place : place + 8])) for ids in (sent, trained)]
    return f"chat sends {spelled[0]} from token {place + 1} on, and {spelled[1]} was trained"
