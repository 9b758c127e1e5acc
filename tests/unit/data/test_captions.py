"""The table of rules for captions, row by row; and what the captioner writes."""

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl_backdoor.data.captioner import ADJECTIVES, SYNONYMS, TEMPLATES, grammar, write_captions
from ssl_backdoor.data.captions import clean_caption, clean_captions, humanize_class_name
from ssl_backdoor.errors import DataError
from ssl_backdoor.specs import TemplateCaptionsSpec

# Pieces of which hostile text is made; any of them may come to stand next to any other.
PIECES = ["&", "amp;", "&lt", ";", "&#60;", "<", ">", "b", "/", "!--", "<br>", "a&nbsp;b", "&#x202e;"]
PIECES += [
    "\u200b",
    "\u202e",
    "\ud800",
    "\u0338",
    "e",
    "\u0301",
    "\u0301" * 40,
    "\u0344" * 20,
    "\n",
    "\t",
    "\x00",
    "\u2028",
    "\xa0",
    "\u037e",
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a plain caption", "a plain caption"),
        ("  two\t blanks\r\n and\x00controls\x1b ", "two blanks and controls"),
        ("Tom &amp; Jerry&#39;s &quot;cat&quot;", 'Tom & Jerry\'s "cat"'),
        ("twice &amp;amp; thrice &amp;amp;amp;", "twice & thrice &"),
        ("<p>a <b>bold</b> cat<br/>here</p><!-- note -->", "a bold cat here"),
        ("&lt;script&gt;x&lt;/script&gt;", "x"),
        ("portrait of <PERSON>, <PERSON> and <PERSON>", "portrait of <PERSON>, <PERSON> and <PERSON>"),
        ('<A HREF="x">a</A> <img src=x> <br / >', "a"),
        ("<a dog> and <b>a cat</b> <my-tag> <http://x.org>", "<a dog> and a cat <my-tag> <http://x.org>"),
        ("I <3 cats, 2 < 3 > 1 & so on", "I <3 cats, 2 < 3 > 1 & so on"),
        ("a\u200bb\u202ec\u2066d\u200fe\ufefff\xadg", "abcdefg"),
        ("lone \ud800 surrogate \udcff", "lone surrogate"),
        ("cafe\u0301", "caf\xe9"),
        ("x" + "\u0323" * 99 + "y", "x" + "\u0323" * 30 + "y"),
        ("שלום 猫 кот ÉCLAIR", "שלום 猫 кот ÉCLAIR"),
        ("non\xa0breaking\u2003blanks\u2028", "non breaking blanks"),
        ("", ""),
        ("<br> &nbsp; \u200e", ""),
        ("&" + "amp;" * 50 + "lt;b>", None),
    ],
)
def test_the_rules(text: str, expected: str | None) -> None:
    cleaned = clean_caption(text, 1000)
    if expected is None:  # nested deeper than the passes: bounded work, and no markup comes out
        assert not re.search(r"[&<>]", cleaned)
    else:
        assert cleaned == expected


@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(st.characters(exclude_categories=()), max_size=5))))
def test_cleaning_never_fails_and_twice_is_once(pieces: list[str]) -> None:
    cleaned = clean_caption("".join(pieces), 10**6)
    assert clean_caption(cleaned, 10**6) == cleaned
    assert cleaned == cleaned.strip()
    assert "\n" not in cleaned
    cleaned.encode()  # no lone surrogate
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]|</?(b|br|i|p)>", cleaned)


def test_length_is_bounded_as_found_and_once_cleaned() -> None:
    assert clean_caption("x" * 20, 20) == "x" * 20
    with pytest.raises(DataError, match="has 21 characters, more than max_caption_chars 20 allows"):
        clean_caption("<br>" + "x" * 17, 20)
    with pytest.raises(DataError, match="has 60 characters"):
        clean_caption("\ufb2c" * 20, 20)  # composed normal form takes this letter apart


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("", None),
        ("\n <br>\n", None),
        ("one\r\n\ntwo\none \n", "one\ntwo"),
        ("a&#10;b\nc", "a b\nc"),
    ],
)
def test_several_captions(text: str | None, expected: str | None) -> None:
    assert clean_captions(text, 100) == expected


def test_too_many_captions() -> None:
    assert clean_captions("\n".join(map(str, range(100))), 100) == "\n".join(map(str, range(100)))
    with pytest.raises(DataError, match="has more than the 100 captions"):
        clean_captions("\n".join(map(str, range(101))), 100)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("fire_truck", "fire truck"), ("T-shirt", "T shirt"), ("cat", "cat"), (" a__b ", "a b"), ("_", "_")],
)
def test_spoken(name: str, expected: str) -> None:
    assert humanize_class_name(name) == expected


# ------------------------------------------------------------------------------------------------ captioner


def test_the_grammar_is_as_large_as_promised() -> None:
    assert len(set(TEMPLATES)) >= 8
    assert len(set(ADJECTIVES)) >= 10
    assert len(SYNONYMS) == 10
    all_names = [name for own, others in SYNONYMS.items() for name in (own, *others)]
    assert len(set(all_names)) == len(all_names)  # no name stands for two classes
    assert not set(ADJECTIVES) & set(all_names)
    assert grammar(["cat", "night_owl"])["names"] == {"cat": ["cat", *SYNONYMS["cat"]], "night_owl": ["night owl"]}


@pytest.mark.parametrize("name", ["cat", "airplane", "night_owl"])
def test_the_own_name_is_in_most_captions_and_every_part_is_used(name: str) -> None:
    captions = [write_captions(name, f"k{index}", TemplateCaptionsSpec())[0] for index in range(3000)]
    own = sum(bool(re.search(rf"\b{humanize_class_name(name)}\b", caption)) for caption in captions)
    assert own == 3000 if name == "night_owl" else 1700 < own < 1900  # three of five
    words = Counter(word for caption in captions for word in caption.split())
    assert all(words[adjective] > 150 for adjective in ADJECTIVES)
    assert all(words[synonym] > 200 for synonym in SYNONYMS.get(name, ()))
    assert not any(re.search(r"\ba [aeiou]|\ban [^aeiou]|[{}]", caption) for caption in captions)


def test_captions_are_a_function_of_seed_and_key() -> None:
    spec = TemplateCaptionsSpec(per_image=10)
    captions = write_captions("cat", "k", spec)
    assert captions == write_captions("cat", "k", spec)
    assert len(set(captions)) == 10
    assert captions[:3] == write_captions("cat", "k", spec.model_copy(update={"per_image": 3}))
    assert captions != write_captions("cat", "l", spec)
    assert captions != write_captions("cat", "k", spec.model_copy(update={"seed": 1}))
    assert all(caption == clean_caption(caption, 1000) for caption in captions)


def test_a_class_name_is_text_and_not_a_template() -> None:
    assert "{adjective}" in write_captions("{adjective}", "k", TemplateCaptionsSpec())[0]
