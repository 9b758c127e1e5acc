r"""Untrusted text into captions, by rule.

| found in a caption | what becomes of it |
|---|---|
| HTML entities (``&amp;``, ``&#39;``, also escaped twice) | the character they stand for |
| HTML tags and comments | a blank; the text between them stays |
| control characters, line breaks, tabs, runs of white space | one blank; none at either end |
| format characters: bidirectional and right-to-left marks, zero-width characters, soft hyphens | dropped |
| lone surrogates, as undecodable bytes leave them | dropped |
| letters spelt as a base and combining marks | composed (Unicode NFC) |
| markup nested deeper than eight levels | its signs ``&``, ``<`` and ``>`` are dropped |
| more than ``max_caption_chars`` characters, as found or once cleaned | the image is rejected |
| nothing left | no caption: null, or the image is rejected where ``captions_required`` |
| several captions of one image | one a line in the records, each once; more than 100 reject the image |

All other letters stay as they are, in any script and case.
"""

import html
import re
import unicodedata

from ssl_backdoor.errors import DataError

MAX_CAPTIONS = 100
"""Of one image."""
_PASSES = 8
_TAG = re.compile(r"<[/!?]?[A-Za-z-][^<>]*>")
_SIGNS = str.maketrans("", "", "&<>")


def humanize_class_name(class_name: str) -> str:
    """A class name as people say it: ``fire_truck`` is "fire truck". Underscores and hyphens part words."""
    return " ".join(re.sub(r"[_-]", " ", class_name).split()) or class_name


def clean_caption(text: str, max_chars: int) -> str:
    """One caption without line breaks, by the rules of this module; may be empty. Cleaning twice changes nothing.

    Raises:
        DataError: longer than ``max_chars`` characters.
    """
    _check_length(text, max_chars)
    if text.isascii() and text.isprintable() and "&" not in text and "<" not in text:
        return " ".join(text.split())
    for _ in range(_PASSES):
        before, text = text, _clean_once(text)
        if text == before:
            break
    else:
        text = _clean_once(text.translate(_SIGNS))
    _check_length(text, max_chars)
    return text


def clean_captions(text: str | None, max_chars: int) -> str | None:
    """The captions of one image, one a line, each cleaned and once, in their order; None where none is left.

    Raises:
        DataError: one is longer than ``max_chars`` characters, or they are more than ``MAX_CAPTIONS``.
    """
    lines = text.split("\n") if text else []
    cleaned = dict.fromkeys(clean_caption(line, max_chars) for line in lines)
    cleaned.pop("", None)
    if len(cleaned) > MAX_CAPTIONS:
        raise DataError(f"has {len(cleaned)} captions, more than the {MAX_CAPTIONS} that one image may have")
    return "\n".join(cleaned) or None


def _check_length(text: str, max_chars: int) -> None:
    if len(text) > max_chars:
        raise DataError(f"its caption has {len(text)} characters, more than max_caption_chars {max_chars} allows")


def _clean_once(text: str) -> str:
    plain = _TAG.sub(" ", html.unescape(text))
    kept = "".join(filter(None, map(_keep_character, plain)))
    return " ".join(unicodedata.normalize("NFC", kept).split())


def _keep_character(character: str) -> str:
    """What stays of one character."""
    if character.isprintable():
        return character
    category = unicodedata.category(character)
    return " " if category == "Cc" else "" if category in ("Cf", "Cs") else character
