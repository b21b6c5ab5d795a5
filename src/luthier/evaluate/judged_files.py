"""Judgments in the files that MT-Bench and AlpacaEval write, for their own tables and notebooks."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

from luthier.evaluate.judge_prompts import rating
from luthier.evaluate.judging import Answered, Asked, Pairing, PairResult, preference


def model_answer(question_id: str, name: str, answers: Sequence[str]) -> dict[str, Any]:
    """A line of MT-Bench's model_answer/NAME.jsonl."""
    choices = [{"index": 0, "turns": list(answers)}]
    return {"question_id": _id(question_id), "answer_id": f"{name}-{question_id}", "model_id": name, "choices": choices, "tstamp": time.time()}


def pair_judgment(row: Answered, pairing: Pairing, names: tuple[str, str], judge: str, journal: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A line of MT-Bench's model_judgment/JUDGE_pair.jsonl: game 1 has the model as A, game 2 as B."""
    line: dict[str, Any] = {"question_id": _id(row.question.id), "model_1": names[0], "model_2": names[1]}
    for game, (order, said) in enumerate(zip(("ab", "ba"), pairing.orders, strict=True), start=1):
        entry = journal.get(f"{row.question.id}|{pairing.turn}|{order}", {})
        line[f"g{game}_winner"] = "tie" if pairing.outcome == "equal" else _winner(said, swapped=order == "ba")
        line[f"g{game}_user_prompt"] = entry["messages"][-1]["content"] if entry else ""
        line[f"g{game}_judgment"] = entry.get("text", "")
        line["judge"] = [judge, entry.get("prompt", line.get("judge", ["", ""])[1])]
    return line | {"turn": pairing.turn, "tstamp": time.time()}


def _winner(said: str, *, swapped: bool) -> str:
    names = {"A": "model_2" if swapped else "model_1", "B": "model_1" if swapped else "model_2", "C": "tie"}
    return names.get(said, "error")


def single_judgments(row: Answered, names: tuple[str, str], judge: str, asked: Asked, journal: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of MT-Bench's model_judgment/JUDGE_single.jsonl for one question; a grade that cannot be read is -1 there."""
    lines = []
    for who, name in zip(("model", "rival"), names, strict=True):
        for turn in range(1, len(row.question.turns) + 1):
            entry = journal.get(key := f"{row.question.id}|{turn}|{who}", {})
            grade = rating(asked.said.get(key, ""))
            lines.append(
                {
                    "question_id": _id(row.question.id),
                    "model": name,
                    "judge": [judge, entry.get("prompt", "")],
                    "user_prompt": entry["messages"][-1]["content"] if entry else "",
                    "judgment": entry.get("text", ""),
                    "score": -1 if grade is None else grade,
                    "turn": turn,
                    "tstamp": time.time(),
                }
            )
    return lines


def annotation(row: Answered, pairing: Pairing, names: tuple[str, str], judge: str, journal: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """An object of AlpacaEval's annotations.json. output_1 is the rival's, and the preference goes from 1 (that) to 2 (the model's)."""
    said = [journal.get(f"{row.question.id}|{pairing.turn}|{order}", {}).get("text", "") for order in ("ab", "ba")]
    return {
        "instruction": row.question.turns[0],
        "dataset": row.question.category,
        "output_1": row.rival[0],
        "generator_1": names[1],
        "output_2": row.model[0],
        "generator_2": names[0],
        "annotator": judge,
        "preference": None if pairing.outcome == "unreadable" else 1 + preference(pairing),
        "raw_completion": said,
    }


def leaderboard_row(name: str, rows: Sequence[Answered], found: Sequence[Pairing], result: PairResult) -> dict[str, Any]:
    """A row of AlpacaEval's leaderboard.csv, in percent as there. A disagreement between the orders is half a win each."""
    shares = [preference(pairing) for pairing in found if pairing.outcome != "unreadable"]
    wins, losses = sum(share > 0.5 for share in shares), sum(share < 0.5 for share in shares)
    draws = len(shares) - wins - losses
    controlled = result.length_controlled_win_rate
    return {
        "": name,
        "win_rate": 100 * sum(shares) / len(shares) if shares else None,
        "standard_error": 100 * statistics.stdev(shares) / len(shares) ** 0.5 if len(shares) > 1 else None,
        "n_wins": wins,
        "n_wins_base": losses,
        "n_draws": draws,
        "n_total": len(shares),
        "discrete_win_rate": 100 * (wins + draws / 2) / len(shares) if shares else None,
        "mode": "community",
        "avg_length": int(sum(len(row.model[0]) for row in rows) / len(rows)),
        "length_controlled_winrate": 100 * controlled.value if controlled else None,
        "lc_standard_error": 100 * (controlled.high - controlled.low) / (2 * 1.96) if controlled else None,
    }


def _id(question_id: str) -> int | str:
    """MT-Bench's ids are numbers."""
    return int(question_id) if question_id.isdecimal() and str(int(question_id)) == question_id else question_id
