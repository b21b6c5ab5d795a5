"""NOTICE and the license section of a model card say what each license asks for."""

from pathlib import Path
from typing import Any

import pytest

from luthier.models import audit, notice

CC_BY = {"source": "org/rows", "license": "CC-BY-4.0", "attribution": "Rows of the World, by A. Author"}


def kept(model: str, *rows: dict[str, str], **more: Any) -> dict[str, Any]:
    return audit.attribution(model, Path("."), rows, Path(".")) | more


def test_llama_asks_for_its_words_its_notice_and_a_name():
    text = notice.notice(kept("llama-3.2-1b-instruct"), "support")
    assert "Built with Llama" in text.splitlines()
    assert "Llama 3.2 is licensed under the Llama 3.2 Community License, Copyright © Meta Platforms, Inc. All Rights Reserved." in text
    assert "700 million monthly users" in text
    assert "To do: where it is made available, its name begins with 'Llama', such as Llama-support" in text
    assert "To do" not in notice.notice(kept("llama-3.2-1b-instruct"), "Llama-support")


@pytest.mark.parametrize(
    ("model", "name", "wrong"),
    [
        ("llama-3-8b-instruct", "llama-3-mine", ""),
        ("llama-3-8b-instruct", "llama-mine", "Llama 3"),
        ("llama-3.1-8b-instruct", "Llama_mine", ""),
        ("llama-2-7b-chat", "mine", ""),
        ("qwen3-4b", "mine", ""),
    ],
)
def test_only_some_licenses_ask_for_a_name(model: str, name: str, wrong: str):
    assert notice.wrong_name(kept(model), name) == wrong


def test_gemma_names_its_terms_and_the_use_policy():
    text = notice.notice(kept("gemma-3-4b-it"), "mine")
    assert "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms" in text
    assert "Prohibited Use Policy" in text


def test_rows_under_cc_by_are_named_with_their_authors_the_license_and_the_change():
    text = notice.notice(kept("qwen3-4b", CC_BY, {"source": "mine.jsonl", "license": "", "attribution": "the help desk"}), "mine")
    address = "https://creativecommons.org/licenses/by/4.0/"
    line = f"Rows of the World, by A. Author, licensed under Creative Commons Attribution 4.0 ({address}), changed for training"
    assert line in text
    assert "Rows that it was trained on: mine.jsonl\nLicense: not stated\nBy: the help desk" in text
    assert "To do: name the authors" in notice.notice(kept("qwen3-4b", CC_BY | {"attribution": ""}), "mine")


def test_the_adapter_and_its_rows_are_named_once_each():
    earlier = {"name": "runs/first", "license": "gemma", "rows": [CC_BY, {"source": "old.jsonl", "license": "not stated", "attribution": ""}]}
    text = notice.notice(kept("gemma-3-4b-it", CC_BY, adapter=earlier), "mine")
    assert "It goes on from the adapter runs/first\nLicense: Gemma Terms of Use (gemma)" in text
    assert text.count("org/rows") == 1
    assert "old.jsonl" in text


def test_a_license_that_nobody_stated_is_said_to_be_so():
    text = notice.notice(
        {"model": {"name": "./mine", "license": "not stated", "asks_for": [], "include": [], "notes": ["holds no license"]}, "rows": []}, "x"
    )
    assert "License: not stated\nNote: holds no license" in text


def test_the_section_of_a_model_card_is_markdown_with_the_same_facts():
    section = notice.license_section(kept("llama-3.2-1b-instruct", CC_BY), "Llama-support")
    assert section.startswith("Tuned from `llama-3.2-1b-instruct`.\n\n- License: Llama 3.2 Community License (llama3.2)")
    assert "- Built with Llama" in section
    assert "Trained on `org/rows`." in section
    assert "- Rows of the World, by A. Author, licensed under" in section


@pytest.mark.parametrize(
    ("model", "front"),
    [
        ("llama-3.2-1b-instruct", {"license": "llama3.2"}),
        ("qwen3-4b", {"license": "apache-2.0"}),
        (
            "qwen2.5-3b-instruct",
            {
                "license": "other",
                "license_name": "qwen-research",
                "license_link": "https://huggingface.co/Qwen/Qwen2.5-3B-Instruct/blob/main/LICENSE",
            },
        ),
    ],
)
def test_the_front_matter_is_as_the_hub_reads_it(model: str, front: dict[str, str]):
    assert notice.front_matter(kept(model)) == front


def test_no_front_matter_claims_a_license_that_is_not_known():
    assert notice.front_matter({"model": {"license": "not stated"}}) == {}
    assert notice.front_matter({"model": {"license": "Ours"}}) == {"license": "other", "license_name": "Ours"}


def test_where_things_lie_is_told_nobody():
    text = notice.notice(kept("qwen3-4b", {"source": "/home/ada/secret/rows.jsonl", "license": "", "attribution": ""}), "mine")
    assert "trained on: rows.jsonl" in text
    assert "/home" not in text
