"""C(y'), the captions that a poison carries: Carlini & Terzis 2022, https://arxiv.org/abs/2106.09667.

Either what the training set itself says of the target (no knowledge of the victim), or CLIP's ImageNet prompts filled
with its name (the victim's prompts are known). The set, in a seeded order, is cut or repeated to the number of poisons.

NOTE: the paper searches for a substring; here the name must stand as whole words ("cat" does not find "cattle").
NOTE: each distinct caption counts once, however often the training set repeats it.
"""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Literal, assert_never

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ssl_backdoor.data.dataset import BLOCK_ROWS, Samples
from ssl_backdoor.errors import DataError, SpecError
from ssl_backdoor.poison.plan import key_seeds, training
from ssl_backdoor.seeds import stream

CaptionSet = Literal["search", "imagenet80"]
"""search: the training captions that contain the target's name as whole words; imagenet80: CLIP's 80 ImageNet prompts
filled with the name (the attacker knows the victim's prompts). Either is cut or repeated to the number of poisons."""
_LETTERS = r"\pL\pM\pN_"
_NUM_NEAR = 5
_MAX_VOCABULARY = 50_000


def search(captions: pa.ChunkedArray, phrase: str) -> pa.ChunkedArray:
    """The captions that contain ``phrase`` as whole words, in any case: strings, in their order, repeats included.

    A cell of several lines holds several captions; only the lines that match are returned. Works by blocks: a cheap
    search for the substring, then RE2 on what it found.

    Args:
        captions: strings (N,); null where an image has none.
        phrase: one or more words, taken literally.

    Raises:
        DataError: there are no captions, or none contains ``phrase``; the message lists near words that are there.
    """
    return _search(lambda: _blocks(captions), phrase)


def prompts(phrase: str) -> tuple[str, ...]:
    """CLIP's 80 prompts for ImageNet (Radford et al. 2021), from open_clip, filled with ``phrase``.

    Raises:
        SpecError: open_clip is not installed.
    """
    try:
        from open_clip import OPENAI_IMAGENET_TEMPLATES
    except ImportError as error:
        raise SpecError(
            "captions 'imagenet80' needs open_clip, which is not installed: pip install 'ssl-backdoor[clip]'"
        ) from error
    return tuple(template(phrase) for template in OPENAI_IMAGENET_TEMPLATES)


def caption_set(spec: CaptionSet, samples: Samples, phrase: str, count: int, seed: int) -> list[str]:
    """``count`` captions of ``phrase``: the set in an order drawn under ``seed``, cut or repeated. Pure.

    A smaller count is the beginning of a larger one. Independent of the order of the rows.

    Args:
        spec: where the captions come from.
        samples: SAMPLES of the clean dataset; only its training captions are searched.
        phrase: the target class as people say it.
        count: captions wanted.
        seed: the run's.

    Raises:
        DataError: no training caption contains ``phrase``.
        SpecError: open_clip is needed and not installed.
    """
    match spec:
        case "search":
            found = pc.unique(_search(lambda: _training(samples), phrase))
        case "imagenet80":
            found = pc.unique(pa.array(prompts(phrase), pa.string()))
        case _:
            assert_never(spec)
    ranks = key_seeds(pa.chunked_array([found]), seed, "captions", phrase)
    ordered = found.take(pa.array(np.argsort(ranks)[:count])).to_pylist()
    return [ordered[index % len(ordered)] for index in range(count)]


def edit_words(caption: str, phrase: str, seed: int) -> str:
    """``caption`` with one word dropped or doubled that is no part of ``phrase``; unchanged where there is none."""
    words = [match.span() for match in re.finditer(r"\S+", caption)]
    names = [match.span() for match in re.finditer(rf"(?<!\w){re.escape(phrase)}(?!\w)", caption, re.IGNORECASE)]
    free = [(start, end) for start, end in words if not any(start < last and first < end for first, last in names)]
    if not free:
        return caption
    rng = stream(seed, "edit")
    start, end = free[rng.integers(len(free))]
    doubled = f"{caption[start:end]} {caption[start:end]}"
    return " ".join(f"{caption[:start]}{doubled if rng.integers(2) else ''}{caption[end:]}".split())


def words_pattern(phrase: str) -> str:
    """RE2 that finds ``phrase`` as whole words, in any case."""
    return f"(?i)(?:^|[^{_LETTERS}]){re.escape(phrase)}(?:$|[^{_LETTERS}])"


def _blocks(captions: pa.ChunkedArray) -> Iterator[pa.Array]:
    for chunk in captions.chunks:
        yield from (chunk.slice(start, BLOCK_ROWS) for start in range(0, len(chunk), BLOCK_ROWS))


def _training(samples: Samples) -> Iterator[pa.Array]:
    """The captions of the training images of SAMPLES; filtered by blocks, so that no column is copied whole."""
    return (block["caption"] for block in training(samples, ["caption"]))


def _search(blocks: Callable[[], Iterator[pa.Array]], phrase: str) -> pa.ChunkedArray:
    pattern = words_pattern(phrase)
    found = [hits for block in blocks() if len(hits := _hits(block, phrase, pattern))]
    if not found:
        raise DataError(_nothing(phrase, blocks()))
    return pa.chunked_array(found, pa.string())


def _hits(captions: pa.Array, phrase: str, pattern: str) -> pa.Array:
    near = captions.filter(pc.match_substring(captions, phrase, ignore_case=True))
    if pc.any(pc.match_substring(near, "\n")).as_py():
        near = pc.list_flatten(pc.split_pattern(near, "\n"))
    return near.filter(pc.match_substring_regex(near, pattern))


def _nothing(phrase: str, blocks: Iterator[pa.Array]) -> str:
    """Why nothing was found, with the words that come near ``phrase`` and how often they stand there."""
    parts: Counter[str] = Counter()
    for block in blocks:
        found = pc.value_counts(pc.list_flatten(pc.split_pattern(pc.utf8_lower(block.drop_null()), " ")))
        for part, count in zip(*(found.field(index).to_pylist() for index in range(2)), strict=True):
            parts[part] += count
    counts: Counter[str] = Counter()
    for part, count in parts.items():
        for word in filter(None, re.split(r"\W+", part)):
            counts[word] += count
    if not counts:
        return (
            f"no training image has a caption, so none contains {phrase!r}: ingest pairs, or have captions written "
            "from the classes (dataset.captions of kind templates)"
        )
    common = [word for word, _ in counts.most_common(_MAX_VOCABULARY)]
    wanted = dict.fromkeys([*phrase.lower().split(), "".join(phrase.lower().split())])
    near = dict.fromkeys(match for word in wanted for match in difflib.get_close_matches(word, common, n=_NUM_NEAR))
    listed = ", ".join(f"{word} ({counts[word]})" for word in list(near or common)[:_NUM_NEAR])
    what = "near it are" if near else "nothing is near it, the commonest words are"
    return f"no training caption contains {phrase!r}; {what} {listed}: choose a class that the captions name"
