"""Every check, by name. A new check is a row here, its limit in limits.py and its planted set in tests/data/quality."""

from luthier.data.quality import answers, characters, correct, languages, lengths, order, personal, refusals, sums
from luthier.data.quality.check import Check, RowCheck
from luthier.data.quality.set_table import SET_CHECKS

CHECKS: dict[str, Check | RowCheck] = {
    "empty_or_tiny_answer": RowCheck("answers that say nothing",                  answers.start_empty,      answers.conclude_empty),
    "cut_answer":           RowCheck("answers cut in mid-sentence",               answers.start_cut,        answers.conclude_cut),
    "repetition":           RowCheck("answers that go round in a loop",           answers.start_repetition, answers.conclude_repetition),
    "refusals":             RowCheck("refusals and a model's boilerplate",        refusals.start_refusals,  refusals.conclude_refusals),
    "special_tokens":       RowCheck("control tokens and template text",          characters.start_special, characters.conclude_special),
    "mojibake":             RowCheck("text in a wrong encoding",                  characters.start_mojibake, characters.conclude_mojibake),
    "control_characters":   RowCheck("control and invisible characters",          characters.start_control, characters.conclude_control),
    "html":                 RowCheck("left-over HTML",                            characters.start_html,    characters.conclude_html),
    "roles":                RowCheck("speakers out of order",                     order.start_roles,        order.conclude_roles),
    "language":             RowCheck("rows in a language that is not meant",      languages.start_language, languages.conclude_language),
    "pii":                  RowCheck("personal data and secrets",                 personal.start_pii,       personal.conclude_pii),
    "json_answers":         RowCheck("JSON answers that do not parse",            correct.start_json,       correct.conclude_json),
    "code_answers":         RowCheck("Python and SQL that does not parse",        correct.start_code,       correct.conclude_code),
    "arithmetic":           RowCheck("sums that are wrong",                       sums.start_arithmetic,    sums.conclude_arithmetic),
    "validator":            RowCheck("what your own check finds",                 correct.start_validator,  correct.conclude_validator),
    "length":               Check("how long rows are, and what padding wastes",   lengths.length),
    "unknown_tokens":       Check("characters that the tokenizer does not know",  lengths.unknown_tokens),
    **SET_CHECKS,
}  # fmt: skip
