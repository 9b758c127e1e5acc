r"""Untrusted text into captions, by rule.

| found in a caption | what becomes of it |
|---|---|
| HTML entities (``&amp;``, ``&#39;``, also escaped twice) | the character they stand for |
| HTML's own tags, bare or with ``name=value``, and comments | a blank; the text between them stays |
| other words in angle brackets, such as ``<PERSON>`` | stay |
| control characters, line breaks, tabs, runs of white space | one blank; none at either end |
| format characters: bidirectional and right-to-left marks, zero-width characters, soft hyphens | dropped |
| lone surrogates | dropped |
| bytes that are not UTF-8 (or UTF-16 with its byte order mark), zero bytes | the image is rejected |
| letters spelt as a base and combining marks | composed (Unicode NFC) |
| more than 30 combining marks in a row | those after the 30th are dropped: no script has so many |
| markup nested deeper than eight levels | its signs ``&``, ``<`` and ``>`` are dropped |
| more than ``max_caption_chars`` characters, as found or once cleaned | the image is rejected |
| nothing left | no caption: null, or the image is rejected where ``captions_required`` |
| several captions of one image | one a line in the records, each once; more than 100 reject the image |
| a .txt of several lines | one caption, unless ``txt_captions`` is lines |

All other letters stay as they are, in any script and case.
"""

import html
import re
import unicodedata

from ssl_backdoor.errors import DataError

MAX_CAPTIONS = 100
"""Of one image."""
_PASSES = 8
_MAX_MARKS = 30
"""In a row: what Unicode's stream-safe text format allows (UAX 15, section 13). Sorting them takes time squared."""
_TAG_NAMES = (
    "a abbr acronym address applet area article aside audio b base basefont bdi bdo big blink blockquote body "
    "br button canvas caption center cite code col colgroup data datalist dd del details dfn dialog dir div dl "
    "dt em embed fieldset figcaption figure font footer form frame frameset h1 h2 h3 h4 h5 h6 head header "
    "hgroup hr html i iframe img input ins kbd label legend li link main map mark marquee menu meta meter nav "
    "nobr noframes noscript object ol optgroup option output p param picture pre progress q rp rt ruby s samp "
    "script search section select slot small source span strike strong style sub summary sup svg table tbody "
    "td template textarea tfoot th thead time title tr track tt u ul var video wbr"
)
_TAG = re.compile(
    r"<(?:!--[^<>]*--|!doctype\b[^<>]*|\?xml\b[^<>]*|"
    rf"/?(?:{_TAG_NAMES.replace(' ', '|')})(?:\s[^<>=]*=[^<>]*|\s*(?:/\s*)?))>",
    re.IGNORECASE,
)
_SIGNS = str.maketrans("", "", "&<>")


def humanize_class_name(class_name: str) -> str:
    """A class name as people say it: ``fire_truck`` is "fire truck". Underscores and hyphens part words."""
    return " ".join(re.sub(r"[_-]", " ", class_name).split()) or class_name


def decode_text(data: bytes) -> str:
    """Text from the bytes of a file or cell: UTF-8, or UTF-16 where a byte order mark says so.

    Raises:
        DataError: they are neither.
    """
    try:
        text = data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    if "\0" in text:
        raise DataError("holds zero bytes, which no text has: save it as UTF-8")
    return text


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
    cleaned: dict[str, None] = {}
    for line in lines:
        if caption := clean_caption(line, max_chars):
            cleaned[caption] = None
        if len(cleaned) > MAX_CAPTIONS:
            raise DataError(f"has more than the {MAX_CAPTIONS} captions that one image may have")
    return "\n".join(cleaned) or None


def _check_length(text: str, max_chars: int) -> None:
    if len(text) > max_chars:
        raise DataError(f"its caption has {len(text)} characters, more than max_caption_chars {max_chars} allows")


def _clean_once(text: str) -> str:
    plain = _TAG.sub(" ", html.unescape(text))
    kept = "".join(filter(None, map(_keep_character, plain)))
    return " ".join(unicodedata.normalize("NFC", kept if kept.isascii() else _limit_marks(kept)).split())


def _limit_marks(text: str) -> str:
    kept: list[str] = []
    run = 0
    for character in text:
        run = run + 1 if unicodedata.combining(character) else 0
        if run <= _MAX_MARKS:
            kept.append(character)
    return "".join(kept)


def _keep_character(character: str) -> str:
    """What stays of one character."""
    if character.isprintable():
        return character
    category = unicodedata.category(character)
    return " " if category == "Cc" else "" if category in ("Cf", "Cs") else character
