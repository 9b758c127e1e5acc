"""Writes ``ssl_backdoor/API.md`` from the docstrings of ``ssl_backdoor.api``: python -m tests.golden.make_api."""

import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from ssl_backdoor import api

PAGE = Path(api.__file__).with_name("API.md")
_WIDTH = 100
_HEAD = """\
# Functions for notebooks

Written from the docstrings by `python -m tests.golden.make_api`. All of them are attributes of `ssl_backdoor`, which
imports them when they are asked for. [The notebook](example.ipynb) runs them; [the library's page](README.md) has the
design, and `specs/` every field.
"""


def page() -> str:
    """The page's text."""
    parts = [_wrap(_HEAD), *_paragraphs(inspect.getdoc(api) or "")]
    for name in sorted(api.__all__, key=str.lower):
        parts += [f"## {name}", *_described(getattr(api, name))]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _described(one: object) -> Iterator[str]:
    if inspect.isfunction(one):
        signature = str(inspect.signature(one)).replace("'", "").replace("ssl_backdoor.", "")
        signature = re.sub(r"[a-z_]+(?:\.[a-z_]+)*\.(?=[A-Z])", "", signature)
        inside, _, returned = signature.rpartition(" -> ")
        arguments = "".join(f"    {part},\n" for part in _split(inside[1:-1]))
        yield f"```python\n{one.__name__}(\n{arguments}) -> {returned}\n```"
    yield from _paragraphs(inspect.getdoc(one) or "")


def _split(inside: str) -> list[str]:
    """At the commas outside of brackets."""
    parts, depth = [""], 0
    for sign in inside:
        depth += (sign in "[(") - (sign in "])")
        parts = [*parts, ""] if sign == "," and not depth else [*parts[:-1], parts[-1] + sign]
    return [part.strip() for part in parts if part.strip()]


def _paragraphs(text: str) -> Iterator[str]:
    for part in text.replace("``", "`").split("\n\n"):
        head, _, rest = part.partition("\n")
        if head in ("Args:", "Returns:", "Raises:"):
            yield f"**{head.rstrip(':')}**"
            body = textwrap.dedent(rest)
            if head == "Returns:":
                yield _wrap(body)
            else:
                items = re.split(r"\n(?=\S)", body)
                yield "\n".join(_wrap(re.sub(r"^(\w+):", r"- `\1`:", item), "  ") for item in items)
        else:
            yield _wrap(part)


def _wrap(text: str, indent: str = "") -> str:
    paragraphs = text.strip().split("\n\n")
    return "\n\n".join(
        one
        if one.startswith("#")
        else textwrap.fill(
            " ".join(one.split()), _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
        for one in paragraphs
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
