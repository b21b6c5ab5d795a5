import json

import pytest

from luthier.errors import DataError
from luthier.evaluate.judge_questions import of_rows, read_answers, read_questions
from luthier.records import Conversation, Source, Turn

MT_BENCH = [
    {"question_id": 81, "category": "writing", "turns": ["Write a haiku.", "Now about snow."]},
    {"question_id": 111, "category": "math", "turns": ["1 + 1?", "Times 3?"]},
]
RIGHT = [{"question_id": 81, "choices": [{"turns": ["a poem", "another"]}]}]  # not used: a poem is not right or wrong
RIGHT += [{"question_id": 111, "answer_id": "x", "model_id": "gpt-4", "choices": [{"index": 0, "turns": ["2", "6"]}], "tstamp": 1.0}]
ALPACA = [
    {"dataset": "helpful_base", "instruction": "Name a river.", "output": "The Rhine.", "generator": "text_davinci_003"},
    {"dataset": "koala", "instruction": "Translate.", "input": "Guten Tag", "output": "Good day.", "generator": "text_davinci_003"},
]


def write(path, rows, lines=True):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps(rows, indent=1), encoding="utf-8")
    return path


def test_mt_benchs_questions_with_its_reference_answers(tmp_path):
    first, second = read_questions(write(tmp_path / "question.jsonl", MT_BENCH), write(tmp_path / "gpt-4.jsonl", RIGHT))
    assert (first.id, first.category, first.turns, first.references) == ("81", "writing", ("Write a haiku.", "Now about snow."), ())
    assert second.references == ("2", "6")


@pytest.mark.parametrize("lines", [True, False])
def test_alpacaevals_questions_with_the_answers_to_beat(tmp_path, lines):
    river, day = read_questions(write(tmp_path / "alpaca_eval.json", ALPACA, lines))
    assert (river.turns, river.category, river.rival, river.rival_name) == (("Name a river.",), "helpful_base", "The Rhine.", "text_davinci_003")
    assert day.turns == ("Translate.\n\nGuten Tag",)


def test_answers_of_others_are_found_by_id_or_instruction(tmp_path):
    questions = read_questions(write(tmp_path / "question.jsonl", MT_BENCH))
    given = read_answers(write(tmp_path / "answers.jsonl", RIGHT))
    assert given.to(questions[1]) == ("2", "6")
    (tmp_path / "answers.jsonl").write_text(json.dumps(RIGHT[1]))
    with pytest.raises(DataError, match="no answer to question 81"):
        read_answers(tmp_path / "answers.jsonl").to(questions[0])
    outputs = read_answers(write(tmp_path / "outputs.json", ALPACA, lines=False))
    (river, day) = read_questions(
        write(tmp_path / "alpaca.json", [{"instruction": row["instruction"], **{"input": row.get("input")}} for row in ALPACA])
    )
    assert (outputs.to(river), outputs.to(day)[0]) == (("The Rhine.",), "Good day.")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"turns": ["a"]}\n{cut', "question.jsonl:2: is not JSON"),
        ('{"prompt": "a"}', r"question.jsonl:1: is no question \(prompt\)"),
        ('{"turns": ["a", "b", "c"]}', "question.jsonl:1:turns: 3 turns"),
        ('{"turns": "a"}', "question.jsonl:1:turns: is no list of texts"),
        ('{"question_id": 7, "turns": ["a"]}\n{"question_id": 7, "turns": ["b"]}', "question_id 7 is there 2 times"),
        ("[1]", "question.jsonl:1: is no JSON object"),
        ("", "holds no question"),
    ],
)
def test_what_is_no_question_is_named_by_its_place(tmp_path, text, problem):
    (tmp_path / "question.jsonl").write_text(text)
    with pytest.raises(DataError, match=problem):
        read_questions(tmp_path / "question.jsonl")


def test_a_missing_file_is_a_clear_error(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_questions(tmp_path / "nothing.jsonl")


def test_a_held_out_row_is_its_last_question_and_its_answer_a_reference():
    turns = (Turn("system", "Be brief."), Turn("user", "Hi"), Turn("assistant", "Hello"), Turn("user", "Name a river."), Turn("assistant", "Rhine"))
    (question,) = of_rows([Conversation(turns, Source("eval.jsonl", 3))])
    assert (question.id, question.turns, question.references, question.rival) == ("eval.jsonl:3", ("Name a river.",), ("Rhine",), "Rhine")
    assert question.shown == ("[system] Be brief.\n\n[user] Hi\n\n[assistant] Hello\n\nName a river.",)
