"""Settings of `luthier data check` and `luthier data clean`: what is looked at, and from where on it counts."""

from typing import Literal

from pydantic import Field

from luthier.config.section import Section, Text


class CheckSettings(Section):
    """The checks of rows."""

    off: list[Text] = Field([], description="checks that are not run, by name (luthier data check lists the names)")
    on: list[Text] = Field([], description="checks that are not run by themselves and are wanted, by name")
    languages: list[Text] = Field([], description="the languages that answers may be in, such as [en, de]; []: the one that most answers are in")
    json_schema: Text | None = Field(None, description="a file with the JSON Schema that answers must satisfy")
    validator: Text | None = Field(
        None, description="your own check, as module:function; it gets (prompt, answer) and gives None, or a sentence on what is wrong"
    )
    judge_endpoint: Text | None = Field(
        None, description="an OpenAI-compatible address whose model says which answers are wrong, for the judge check (on: [judge])"
    )
    judge_model: Text | None = Field(None, description="the model of judge_endpoint")
    judge_key_env: Text | None = Field(None, description="name of the environment variable that holds the key of judge_endpoint")
    judge_rows: int = Field(100, ge=1, description="rows that are judged: a sample")
    near_duplicate_threshold: float = Field(
        0.8, gt=0, le=1, description="rows at least this alike (Jaccard of their word triples) are near duplicates"
    )
    semantic_duplicate_threshold: float = Field(
        0.75, gt=0, le=1, description="rows whose prompts and whose answers are at least this alike in meaning (cosine of static word vectors)"
    )
    balance_smallest: float = Field(
        0.2, ge=0, le=1, description="a class is small below this share of what it would have if all classes had the same number of rows"
    )
    structure_rare: float = Field(0.02, ge=0, lt=0.5, description="a structure or JSON key of answers to one task is odd below this share of them")
    diversity_openings: float = Field(
        6, ge=1, description="instructions are narrow if they open in fewer ways than this (exponential of the entropy of their first words)"
    )
    domain_description: Text | None = Field(None, description="what the rows are about, in a sentence or two, for the off_domain check")
    domain_similarity: float = Field(
        0.2, gt=-1, lt=1, description="rows less alike than this to the evaluation rows or the description are off the domain (cosine)"
    )
    toxicity_classifier: Text | None = Field(
        None, description="module:function that gets a list of texts and gives a list of scores from 0 to 1; null: the word list only"
    )
    toxicity_threshold: float = Field(0.5, gt=0, le=1, description="score of the toxicity classifier from which on a row counts")
    purpose: Literal["style", "task", "domain", "general"] | None = Field(
        None,
        description="what the rows should teach, for the guidance on their number: a style, one task, a domain, or following instructions at large",
    )
    hard_row_deviations: float = Field(
        3.5, gt=0, description="rows are hard if their loss is this many deviations (scaled median absolute) above the median"
    )
