"""Retrieval beside a run: rows to train on, the 2 x 2, answers and chats from documents."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest_runs import SYSTEM, TOWNS, Listener, write_rows

from luthier import files
from luthier.data.conversations import AS_FOUND, conversations, files_of
from luthier.data.formats.build import Built
from luthier.engine import Engine
from luthier.errors import CallError, DataError
from luthier.rag.finding import open_finder
from luthier.rag.grounding import NOT_THERE, Grounding
from luthier.rag.index import open_index
from luthier.rag.raft import Shares
from luthier.recipes import conversation, rag_compare, rag_mix, reading, retrieval
from luthier.recipes.rag_compare import Call, Compared
from luthier.run_folder import RunFolder

# The tiny model reads 512 tokens, and its tokens are short.
SMALL = Grounding(2, 100, 0.35)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve rows about addresses, and two documents beside them."""
    folder = tmp_path_factory.mktemp("rag")
    docs = folder / "docs"
    docs.mkdir()
    for place, town in enumerate(TOWNS[:6]):
        (docs / f"{town.lower()}.md").write_text(f"# {town}\n\nThe postman of {town} goes to {100 + place} Pierce Rd.\n", encoding="utf-8")
    retrieval.index([str(docs)], folder / "index")
    return folder / "index"


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"question": f"Where does the postman of {town} go to?", "answer": f"{100 + place} Pierce Rd"} for place, town in enumerate(TOWNS[:6])]
    return write_rows(
        tmp_path_factory.mktemp("questions") / "questions.jsonl", [*rows, {"question": "Who was Nero?", "answer": "an emperor of Rome"}]
    )


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_held_out_documents_are_in_no_row_and_all_questions_are_accounted_for(index: Path, questions: Path, tmp_path: Path) -> None:
    done = rag_mix.rag_mix(str(questions), index, tmp_path / "raft", Shares(passages=2, together=2), hold_out=0.34, seed=1)
    assert done.rows + done.held_out + sum(done.rejected.values()) == 7
    assert done.held_out == done.held_out_documents == 2
    assert done.rejected == {"no_passage": 1}
    rows, held = lines(tmp_path / "raft" / "train.jsonl"), lines(tmp_path / "raft" / "held_out.jsonl")
    hidden = {row["gold"] for row in held}
    shown = {place for row in rows for place in row["provenance"]["from"]}
    assert hidden
    assert shown
    assert not hidden & shown
    for row in held:
        town = row["question"].split(" of ")[1].split()[0]
        assert all(f"# {town}" not in json.dumps(one) and f"postman of {town}" not in json.dumps(one) for one in rows)
    # What was written is read again by the trainer, and by the comparison.
    with_rows = files_of([str(tmp_path / "raft" / "train.jsonl")], tmp_path, lambda line: None)
    built = list(conversations(with_rows[0], AS_FOUND, lambda line: None).built)
    assert len(built) == done.rows
    assert all(isinstance(one, Built) for one in built)
    finder = open_finder(open_index(index))
    asked, _ = rag_compare.read_questions(str(tmp_path / "raft" / "held_out.jsonl"), Listener())
    assert {finder.index.passages(rag_compare.golden(one.row, one.question, one.answer, finder))[0].place for one in asked} == hidden
    with pytest.raises(CallError, match="exists already"):
        rag_mix.rag_mix(str(questions), index, tmp_path / "raft", Shares())


def as_plain_text(questions: Path, to: Path) -> Path:
    """The same questions in the columns that are read as plain text, without a chat template."""
    # What stands beside them is not read, whatever it is called.
    beside = {"answer": "short", "system": "You are a postman."}
    return write_rows(to, [{"prompt": row["question"], "completion": row["answer"], **beside} for row in lines(questions)])


def test_questions_of_plain_text_are_held_out_as_they_are_trained(index: Path, questions: Path, tmp_path: Path) -> None:
    plain = as_plain_text(questions, tmp_path / "plain.jsonl")
    for name, path in {"chats": questions, "plain": plain}.items():
        rag_mix.rag_mix(str(path), index, tmp_path / name, Shares(passages=2, together=2), hold_out=0.34, seed=1)
    assert lines(tmp_path / "plain" / "held_out.jsonl") == lines(tmp_path / "chats" / "held_out.jsonl")
    assert [row["messages"] for row in lines(tmp_path / "plain" / "train.jsonl")] == [
        row["messages"] for row in lines(tmp_path / "chats" / "train.jsonl")
    ]


def test_rows_that_share_their_passages_are_computed_once(index: Path, questions: Path, tmp_path: Path, tiny_model: Path) -> None:
    shares = Shares(passages=2, together=2, without_gold=0.0)
    rag_mix.rag_mix(str(questions), index, tmp_path / "raft", shares, hold_out=0.0)
    engine = Engine.open(str(tiny_model), lora={"r": 2})
    update = engine.forward_backward(engine.tokenize(lines(tmp_path / "raft" / "train.jsonl")))
    assert update.executed_tokens < 0.75 * update.logical_tokens


def test_questions_that_the_index_cannot_answer_make_no_rows(index: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "q.jsonl", [{"question": "Who was Nero?", "answer": "an emperor of Rome"}] * 2)
    with pytest.raises(DataError, match="holds the answer to none of"):
        rag_mix.rag_mix(str(path), index, tmp_path / "raft", Shares())
    assert not (tmp_path / "raft").exists()


@pytest.fixture(scope="module")
def compared(learned: RunFolder, index: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Compared, Call]:
    folder = tmp_path_factory.mktemp("compared") / "run"
    shutil.copytree(learned.path, folder)
    call = Call(str(questions), index, ("squad_f1", "exact_match"), SMALL, max_new_tokens=12, without=3)
    return RunFolder(folder), rag_compare.compare(str(folder), call), call


def test_the_four_are_measured_on_the_same_questions(compared: tuple[RunFolder, Compared, Call]) -> None:
    run, done, _ = compared
    assert list(done.scorecard.models) == ["base", "tuned", "base_rag", "tuned_rag"]
    for name, metrics in done.scorecard.models.items():
        assert {"squad_f1", "exact_match", "faithfulness", "refused"} <= set(metrics)
        assert metrics["squad_f1"].n == 7
        assert ("refused_without" in metrics) == name.endswith("_rag")
    assert {"tuned", "base_rag", "tuned_rag", "tuned_rag less tuned", "tuned_rag less base_rag"} == set(done.scorecard.differences)
    assert done.retrieval["questions"] == 6
    assert done.retrieval["recall"] == 1.0
    assert done.retrieval["nothing_fits"] == 1
    # Nothing fits the last question: the answer is that, and no model was asked.
    assert done.scorecard.models["base_rag"]["refused"].value >= 1 / 7
    costs = done.scorecard.costs
    assert costs["base_rag"]["prompt_tokens_per_question"] > costs["base"]["prompt_tokens_per_question"] > 0
    assert done.verdict.startswith("Ship the ")
    assert "an answer takes" in done.verdict
    samples = lines(done.folder / "samples.jsonl")
    assert samples[6]["answers"]["tuned_rag"] == NOT_THERE
    assert files.read_json(done.folder / "rag.json")["verdict"] == done.verdict
    assert done.verdict.split(";")[0].replace("'", "&#x27;") in run.report.read_text(encoding="utf-8").replace("&#39;", "&#x27;")


def test_questions_of_plain_text_are_asked_as_the_run_was_trained(
    compared: tuple[RunFolder, Compared, Call], questions: Path, tmp_path: Path
) -> None:
    run, done, call = compared
    again = rag_compare.compare(str(run.path), replace(call, data=str(as_plain_text(questions, tmp_path / "plain.jsonl")), name="plain"))
    assert again.scorecard.models == done.scorecard.models
    costs = [{name: cost["prompt_tokens_per_question"] for name, cost in one.scorecard.costs.items()} for one in (done, again)]
    assert costs[0] == costs[1]


def test_the_same_comparison_again_asks_nothing_and_another_one_has_its_own_folder(compared: tuple[RunFolder, Compared, Call]) -> None:
    run, done, call = compared
    before = (done.folder / "answers.jsonl").read_bytes()
    listener = Listener()
    again = rag_compare.compare(str(run.path), call, listener)
    assert again.scorecard.models == done.scorecard.models
    assert again.folder == done.folder
    assert (done.folder / "answers.jsonl").read_bytes() == before
    assert not any(line.startswith("asking") for line in listener.lines)
    assert rag_compare._folder(run, Call(call.data, call.index, ("rougeL",), SMALL)) == done.folder.with_name(f"{done.folder.name}-2")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metrics": ("perplexity",)}, "not counted of texts alone"),
        ({"name": "a/b"}, "no name of a folder"),
        ({"name": "held-out"}, "is the run's own evaluation"),
        ({"name": "rag-questions"}, "holds another evaluation, which is kept"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_refused(changes: dict, words: str, compared: tuple[RunFolder, Compared, Call]) -> None:
    run, _, call = compared
    with pytest.raises(CallError, match=words):
        rag_compare.compare(str(run.path), Call(**{"data": call.data, "index": call.index, **changes}))


def test_a_run_answers_from_the_documents_as_it_was_trained_to_be_asked(learned: RunFolder, index: Path) -> None:
    reader = reading.open_reader(index, str(learned.path), SMALL, max_new_tokens=12)
    grounded = reader.ground("Where does the postman of Elgin go to?")
    assert [turn.content for turn in grounded.turns[:1]] == [SYSTEM]
    assert grounded.passages[0]["source"].endswith("docs/elgin.md:3")
    answer = "".join(reader.stream(grounded))
    assert answer == "".join(reader.engine.stream(grounded.turns, max_new_tokens=12))
    nothing = reader.ground("Who was Nero?")
    assert "".join(reader.stream(nothing)) == NOT_THERE
    assert reading.replied(NOT_THERE, nothing).passages == []
    with pytest.raises(DataError, match="leaves no room for passages"):
        reader.ground("where " * 300)
    with pytest.raises(CallError, match="is empty"):
        reader.ground("  ")


def test_a_chat_looks_every_question_up_and_remembers_it_without_the_passages(learned: RunFolder, index: Path) -> None:
    talk = conversation.open_talk(learned, max_new_tokens=12)
    talk.look_up_in(index, Listener(), SMALL)
    question = "Where does the postman of Elgin go to?"
    said = "".join(talk.ask(question))
    assert [turn.content for turn in talk.sessions["tuned"].turns] == [SYSTEM, question, said]
    passages, _ = talk.sources(said)
    assert passages[0]["source"].endswith("docs/elgin.md:3")
    plain = conversation.open_talk(learned, max_new_tokens=12)
    assert "".join(plain.ask(question)) != said  # the passages were read
    assert "".join(talk.ask("Who was Nero?")) == NOT_THERE
    assert talk.sources(NOT_THERE) == ([], [])
    with pytest.raises(CallError, match="is no index"):
        talk.look_up_in(index.parent, Listener(), SMALL)


def test_looking_up_needs_no_model(index: Path) -> None:
    found = retrieval.look_up(index, "postman of Boston", 2)
    assert found.found[0].passage.title == "Boston"
    assert found.fits()
    with pytest.raises(CallError, match="names no documents"):
        retrieval.index([], index.with_name("none"))
