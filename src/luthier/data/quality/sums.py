"""Sums that are wrong: 12 + 30 = 41."""

import re
from collections.abc import Iterator
from fractions import Fraction

from luthier.data.quality.check import Finding, Given, Look, Note, Noted
from luthier.data.quality.limits import counted
from luthier.data.quality.parts import answers_of
from luthier.records import Conversation

NUMBER = r"[-−]?(?:[$€£] ?)?(?:\d{1,3}(?:,\d{3})+|\d++)(?:\.\d++)?%?"
OPERATOR = r" ?(?:\*\*|[-+−–*×·x/÷^]) ?"
SIDE = rf"\(*{NUMBER}\)*(?:{OPERATOR}\(*{NUMBER}\)*){{0,8}}"
# Before: no letter, digit, operator or bracket that would belong to it; after: nothing that goes on.
EQUATION = re.compile(
    r"(?<![\w.,%)\]$€£^*/+=−–-])(?<![-+*/×÷=−–^√:] )(?<![\w)] [-−])"
    rf"({SIDE}) ?=(?!=) ?(?:<<[^<>]*>>)?({SIDE})"
    r"(?![\w^*(/!°²³]|[.,]\d| ?[-+*/×÷^%] ?[\w(√]| ?(?:mod|\(mod)\b)"
)
CALCULATOR = re.compile(r"<<([^<>=]+)=([^<>=]+)>>")  # GSM8K
NOT_CLAIMED = re.compile(
    r"\b(?:not|n['’]t|wrong|incorrect\w*|false|mistake\w*|error|never|instead of|rather than|falsch|nicht|base|binary|hex\w*|octal|modul\w*|clock|"
    r"mod|approximat\w*|remainder|joke|puzzle|if we define|suppose|faux|incorrecto)\b|≠|≈",
    re.IGNORECASE,
)
AROUND = 45  # characters on each side that may say that the sum is not meant
ENDS = re.compile(r"[.!?]\s|\n")
BELONGS = re.compile(r"\b(?:sin|cos|tan|log|ln|exp|sqrt|root of|version|release)\s*$", re.IGNORECASE)
DATE = re.compile(r"\d{4}-\d\d-\d\d")
TOKENS = re.compile(r"\*\*|[-+−–*×·x/÷^()]|\d[\d,]*(?:\.\d+)?%?")
BINDS = {"+": 1, "-": 1, "*": 2, "/": 2, "^": 3}
NOT_ONE_NUMBER = re.compile(r"\d[\d,.)%]* ?[-+−–*×·x/÷^]")
SAME_SIGN = str.maketrans({"−": "-", "–": "-", "×": "*", "·": "*", "x": "*", "÷": "/"})


def start_arithmetic(given: Given) -> Look | str:
    def look(row: Conversation) -> Note | None:
        for turn in answers_of(row):
            if "=" in turn.content:
                for wrong in wrong_sums(turn.content):
                    return Note(wrong, 1.0)
        return None

    return look


def wrong_sums(text: str) -> Iterator[str]:
    """Each sum whose two sides differ by more than rounding, with what it should be."""
    for found in EQUATION.finditer(text):
        before = ENDS.split(text[max(0, found.start() - AROUND) : found.start()])[-1]
        after = ENDS.split(text[found.end() : found.end() + AROUND])[0]
        if not (NOT_CLAIMED.search(f"{before} {after}") or BELONGS.search(before) or DATE.fullmatch(found[1])):
            yield from _wrong(found[1], found[2])
    for found in CALCULATOR.finditer(text):
        yield from _wrong(found[1], found[2])


def _wrong(left: str, right: str) -> Iterator[str]:
    # One side at least is a sum; a percentage beside + or - may be meant of the other number.
    operators = set(re.findall(r"(?<=[\d)%]) ?([-+−–*×·x/÷^])", left + " = " + right))
    if not operators or ("%" in left + right and operators & set("+-−–")):
        return
    try:
        true, said = _value(left), _value(right)
    except (ValueError, ZeroDivisionError, IndexError, OverflowError):
        return
    if abs(true - said) > _rounding(true, left, right, operators):
        # What is told is the value of the side that is a sum.
        side, value = ("it", true) if NOT_ONE_NUMBER.search(left.strip()) else (right.strip(), said)
        yield f"{left.strip()} = {right.strip()}, but {side} is {_shown(value)}"


def _rounding(true: Fraction, left: str, right: str, operators: set[str]) -> Fraction:
    """How far the right side may be off: one unit of its last place where digits had to be left out, else nothing."""
    places, given = _decimals(right), _decimals(left)
    if (true * 10**places).denominator == 1:
        return Fraction(0)
    divided = operators & set("/÷")
    return Fraction(1, 10**places) if divided or "%" in left or places < given * (2 if operators & set("*×·x^") else 1) else Fraction(0)


def _decimals(text: str) -> int:
    """Most places after a point in the numbers of the text; a percentage has two more."""
    found = re.findall(r"\d(?:\.(\d+))?(%?)(?![\d.,])", text)
    return max((len(places) + 2 * bool(percent) for places, percent in found), default=0)


def _value(text: str) -> Fraction:
    """The value of a sum by the usual precedence (powers bind to the right)."""
    values: list[Fraction] = []
    waiting: list[str] = []
    unary = True
    for token in TOKENS.findall(text.replace("**", "^").translate(SAME_SIGN)):
        if token[0].isdigit():
            values.append(_number(token))
            unary = False
        elif token == "(":
            waiting.append(token)
        elif token == ")":
            while waiting[-1] != "(":
                _apply(waiting.pop(), values)
            waiting.pop()
        elif unary and token == "-":
            values.append(Fraction(-1))
            waiting.append("*")
        else:
            while waiting and waiting[-1] != "(" and BINDS[waiting[-1]] + (token != "^") > BINDS[token]:
                _apply(waiting.pop(), values)
            waiting.append(token)
            unary = True
    while waiting:
        _apply(waiting.pop(), values)
    if len(values) != 1:
        raise ValueError(text)
    return values[0]


def _number(token: str) -> Fraction:
    percent = token.endswith("%")
    return Fraction(token.rstrip("%").replace(",", "")) / (100 if percent else 1)


def _apply(operator: str, values: list[Fraction]) -> None:
    right, left = values.pop(), values.pop()
    if operator == "^" and (right.denominator != 1 or abs(right) > 64):
        raise ValueError("no power to compute here")
    values.append(
        left + right
        if operator == "+"
        else left - right
        if operator == "-"
        else left * right
        if operator == "*"
        else left / right
        if operator == "/"
        else left ** int(right)
    )


def _shown(value: Fraction) -> str:
    return f"{value.numerator:,}" if value.denominator == 1 else f"{float(value):,.6g}"


def conclude_arithmetic(noted: Noted, given: Given) -> Finding:
    return counted(noted, "have a sum that is wrong", "mend the answers, or take the rows out: luthier data clean FILE")
