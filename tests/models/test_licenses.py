"""Licenses: what they allow, what they ask for, and that each model of the catalog has one with its text to include."""

from datetime import date

import pytest

from luthier.errors import CallError
from luthier.models import catalog, licenses
from luthier.models.licenses import USES, License


@pytest.mark.parametrize("known", licenses.licenses(), ids=lambda known: known.id)
def test_every_license_is_whole(known: License):
    assert known.url.startswith("https://")
    assert known.allows
    assert set(known.allows) <= set(USES)
    assert known.phrase == known.phrase.lower()
    assert known.read
    assert date.fromisoformat(known.checked) <= date.today()
    for use in known.allows:
        assert not known.include[use] or known.obligations[use], "text to include without a duty to do so"
    for use in set(USES) - set(known.allows):
        assert not known.obligations[use]


VERDICTS = {
    # license          research                    internal                    commercial                  saas
    "Apache-2.0":    ("allowed",                  "allowed",                  "allowed with obligations", "allowed"),
    "MIT":           ("allowed",                  "allowed",                  "allowed with obligations", "allowed"),
    "llama2":        ("allowed with obligations",) * 4,
    "llama3":        ("allowed with obligations",) * 4,
    "llama3.1":      ("allowed with obligations",) * 4,
    "llama3.2":      ("allowed with obligations",) * 4,
    "llama3.3":      ("allowed with obligations",) * 4,
    "gemma":         ("allowed with obligations",) * 4,
    "qwen":          ("allowed",                  "allowed",                  "allowed with obligations", "allowed with obligations"),
    "qwen-research": ("allowed with obligations", "not for this use",         "not for this use",         "not for this use"),
    "mrl":           ("allowed with obligations", "not for this use",         "not for this use",         "not for this use"),
    "CC-BY-4.0":     ("allowed",                  "allowed",                  "allowed with obligations", "allowed with obligations"),
    "CC-BY-SA-4.0":  ("allowed",                  "allowed",                  "allowed with obligations", "allowed with obligations"),
    "CC-BY-NC-4.0":  ("allowed with obligations", "not for this use",         "not for this use",         "not for this use"),
}  # fmt: skip


def test_the_verdict_on_every_license_for_every_use():
    assert {known.id: tuple(licenses.audit("m", known.id, use).verdict for use in USES) for known in licenses.licenses()} == VERDICTS


@pytest.mark.parametrize(
    ("name", "use", "obliged", "included"),
    [
        ("llama3.2", "saas", 'show "Built with Llama"', "Built with Llama"),
        ("llama3.2", "commercial", 'begins with "Llama"', "Llama 3.2 is licensed under the Llama 3.2 Community License"),
        ("llama3", "saas", 'begins with "Llama 3"', "Built with Meta Llama 3"),
        ("llama3.1", "commercial", "700 million", "Llama 3.1 is licensed"),
        ("llama2", "commercial", "700 million", "Llama 2 is licensed under the LLAMA 2 Community License"),
        ("gemma", "saas", "a service counts as distribution", ""),
        (
            "gemma",
            "commercial",
            "Prohibited Use Policy",
            "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
        ),
        ("qwen", "saas", "100 million", "Built with Qwen"),
        ("apache-2.0", "commercial", "pass the license text", "Apache License, Version 2.0"),
    ],
)
def test_what_a_license_asks_for_and_the_text_to_include(name: str, use: licenses.Use, obliged: str, included: str):
    found = licenses.audit("my-model", name, use)
    assert obliged in " ".join(found.obligations)
    assert included in " ".join(found.include)
    assert bool(included) == bool(found.include)


def test_a_refusal_asks_for_nothing_and_includes_nothing():
    found = licenses.audit("qwen2.5-3b", "qwen-research", "saas")
    assert (found.verdict, found.obligations, found.include) == ("not for this use", (), ())


def test_an_unknown_or_missing_license_is_no_permission():
    for name, words in (("bespoke-1.0", "bespoke-1.0: not in Luthier's table"), ("", "no license was found")):
        found = licenses.audit("m", name, "research")
        assert (found.verdict, found.license) == ("unknown", words)
        assert "nothing is allowed" in found.notes[-1]


def test_what_was_not_read_is_marked():
    assert any("unverified" in note for note in licenses.audit("m", "cc-by-4.0", "saas").notes)
    assert not any("unverified" in note for note in licenses.audit("m", "llama3.1", "saas").notes)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\n\nLlama 3.2 Version Release Date", "llama3.2"),
        ("META LLAMA 3 COMMUNITY LICENSE AGREEMENT\n", "llama3"),
        ("Qwen RESEARCH LICENSE AGREEMENT\n\nQwen RESEARCH LICENSE AGREEMENT Release Date: September 19, 2024", "qwen-research"),
        ("Qwen LICENSE AGREEMENT\n\nQwen LICENSE AGREEMENT Release Date", "qwen"),
        ("Gemma Terms of Use\n\nLast modified: April 1, 2024", "gemma"),
        ("MIT License\n\nPermission is hereby granted, free\nof charge, to any person", "MIT"),
        ("All rights reserved.", None),
    ],
)
def test_a_license_is_known_by_its_text(text: str, found: str | None):
    known = licenses.of_text(text)
    assert (known.id if known else None) == found


def test_this_projects_own_license_is_known_by_its_text(pytestconfig: pytest.Config):
    known = licenses.of_text((pytestconfig.rootpath / "LICENSE").read_text(encoding="utf-8"))
    assert known is not None
    assert known.id == "Apache-2.0"


def test_a_use_that_is_none_is_named():
    with pytest.raises(CallError, match=r"--use: 'resale' is no use\n  Try: research \| internal \| commercial \| saas"):
        licenses.check_use("resale")


def test_every_license_but_the_known_extra_ones_is_that_of_a_model():
    without = {known.id for known in licenses.licenses()} - {card.license for card in catalog.cards()}
    assert without == {"mrl", "CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-NC-4.0", "llama3.3"}
