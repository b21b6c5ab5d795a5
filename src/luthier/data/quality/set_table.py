"""The checks that compare rows with each other, by name."""

from luthier.data.quality import balance, domain, duplicates, hard_rows, judged, near, semantic, structure, support, toxicity
from luthier.data.quality.check import Check, RowCheck

SET_CHECKS: dict[str, Check | RowCheck] = {
    "duplicates":          Check("rows that are there twice",                          duplicates.duplicates),
    "near_duplicates":     Check("rows that are almost there twice",                   near.near_duplicates),
    "semantic_duplicates": Check("rows that say the same in other words",              semantic.semantic_duplicates, default=False),
    "conflicting_answers": Check("questions with several answers",                     duplicates.conflicting_answers),
    "overlap":             Check("training rows that stand in the evaluation set too", duplicates.overlap),
    "balance":             Check("classes with few rows",                              balance.balance),
    "diversity":           Check("how many ways there are to ask",                     balance.diversity),
    "mixed_structure":     Check("answers built differently from the rest",            structure.mixed_structure),
    "off_domain":          Check("rows about something else",                          domain.off_domain, default=False),
    "unsupported":         RowCheck("answers with figures or names of their own",      support.start_unsupported, support.conclude_unsupported),
    "toxicity":            Check("insults, threats and obscenities",                   toxicity.toxicity),
    "judge":               Check("answers that another model calls wrong",             judged.judge, default=False),
    "size":                Check("whether there are enough rows",                      balance.size),
    "hard_rows":           Check("rows that are hard for the base model",              hard_rows.hard_rows, default=False),
}  # fmt: skip
