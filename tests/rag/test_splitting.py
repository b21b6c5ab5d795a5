"""Passages are verbatim, small enough, overlap, and leave nothing out."""

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.errors import CallError
from luthier.rag.splitting import Part, Split, passages_of, spans

TEXT = st.text(alphabet=st.sampled_from("ab c.\n\nd! 漢。\t"), min_size=1, max_size=900)


@settings(max_examples=60, deadline=None)
@given(TEXT, st.sampled_from([Split(100, 0), Split(100, 50), Split(160, 20)]))
def test_passages_are_verbatim_and_leave_out_white_space_alone(text: str, split: Split) -> None:
    covered = [False] * len(text)
    before = (-1, -1)
    for start, end in spans(text, split):
        assert 0 < end - start <= split.size
        assert start > before[0]
        assert end > before[1]
        covered[start:end] = [True] * (end - start)
        before = (start, end)
    assert not "".join(letter for letter, seen in zip(text, covered, strict=True) if not seen).strip()
    for passage in passages_of("a.txt", Part("", text, 1), split):
        assert passage.text in text
        assert passage.text == passage.text.strip()


@settings(max_examples=40, deadline=None)
@given(TEXT)
def test_the_lines_of_a_passage_are_where_its_text_stands(text: str) -> None:
    lines = text.split("\n")
    for passage in passages_of("a.txt", Part("", text, 11), Split(100, 30)):
        there = "\n".join(lines[passage.first - 11 : passage.last - 10])
        assert passage.text in there
        assert passage.text.split("\n")[0] in lines[passage.first - 11]
        assert passage.text.split("\n")[-1] in lines[passage.last - 11]


def test_a_passage_ends_with_a_paragraph_or_a_sentence_and_the_next_one_repeats_its_end() -> None:
    sentences = [f"Sentence number {number} tells of a guitar." for number in range(12)]
    text = " ".join(sentences[:6]) + "\n\n" + " ".join(sentences[6:])
    found = list(passages_of("a.md", Part("Guitars", text, 1), Split(260, 60)))
    assert all(passage.text.endswith(".") and re.match("Sentence", passage.text) for passage in found)
    assert all(other.text.startswith(one.text.split(". ")[-1]) for one, other in itertools.pairwise(found))
    assert {sentence for passage in found for sentence in sentences if sentence in passage.text} == set(sentences)
    assert found[0].whole.startswith("Guitars\nSentence number 0")


def test_a_text_without_any_place_to_end_is_cut_at_the_size() -> None:
    found = list(passages_of("a.txt", Part("", "x" * 1000, 1), Split(300, 0)))
    assert [len(passage.text) for passage in found] == [300, 300, 300, 100]


@pytest.mark.parametrize(("split", "words"), [(Split(10, 0), "says too little"), (Split(200, 150), "half of --size"), (Split(200, -1), "between 0")])
def test_sizes_that_make_no_passages_are_refused(split: Split, words: str) -> None:
    with pytest.raises(CallError, match=words):
        split.check()
