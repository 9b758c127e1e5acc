"""How lists, counts and methods are spelled, for people."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

METHOD_LABELS = {
    "moco_v2": "MoCo v2", "byol": "BYOL", "simclr": "SimCLR", "simsiam": "SimSiam", "msf": "MSF", "rotnet": "RotNet",
    "jigsaw": "Jigsaw", "mae": "MAE", "clip": "CLIP", "roclip": "RoCLIP", "safeclip": "SafeCLIP",
}  # fmt: skip
"""Of the built-in methods, by kind."""


def method_label(kind: str) -> str:
    """For people; of a plug-in's its kind."""
    return METHOD_LABELS.get(kind, kind)


def listing(parts: Sequence[str]) -> str:
    """The parts in a row of prose: a, b and c."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def plural(count: float, what: str) -> str:
    """``count`` with its noun: 1 seed, 2 seeds."""
    return f"{count:,.0f} {what}{'s' * (count != 1)}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence on a ``name`` that is none of ``known``: those that look like it, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def explain(item: Mapping[str, Any], known: Iterable[str] = ()) -> str:
    """What was found, from one of pydantic's ``ValidationError.errors()``.

    Args:
        item: of a spec.
        known: fields that its last step could have named.
    """
    match item["type"]:
        case "value_error":
            return str(item["ctx"]["error"]).rstrip(".")
        case "union_tag_not_found":
            return f"a kind is missing (found {item['input']!r:.80})"
        case "union_tag_invalid":
            kinds = re.findall(r"'([^']+)'", item["ctx"]["expected_tags"])
            near = did_you_mean(item["ctx"]["tag"], kinds)
            return f"there is no kind {item['ctx']['tag']!r:.80}{near or '; the kinds are ' + ', '.join(kinds)}"
        case "extra_forbidden":
            return f"there is no such field (found {item['input']!r:.80}){did_you_mean(str(item['loc'][-1]), known)}"
        case _:
            return f"{item['msg']} (found {item['input']!r:.80})"
