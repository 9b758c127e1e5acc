"""Messages of poison/ and evaluate/ are sentences of the house's style: no capital at the start, no full stop."""

import ast
from collections.abc import Iterator
from pathlib import Path

import ssl_backdoor

ROOT = Path(ssl_backdoor.__file__).parent
KINDS = {"SpecError", "DataError", "CheckpointError", "TrainingError", "StoreError", "ValueError"}
NAMES = ("CLIP", "JPEG", "PNG")


def messages(file: Path) -> Iterator[str]:
    """Of every ``raise`` its text; ``{}`` stands for what is filled in."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            told = node.exc.args[0]
            if getattr(node.exc.func, "id", "") in KINDS and isinstance(told, ast.Constant | ast.JoinedStr):
                parts = told.values if isinstance(told, ast.JoinedStr) else [told]
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)


def test_messages_begin_in_lower_case_and_have_no_full_stop() -> None:
    files = [file for folder in ("poison", "evaluate") for file in (ROOT / folder).rglob("*.py")]
    found = [text for file in files for text in messages(file)]
    assert len(found) > 40
    assert [one for one in found if one[:1].isupper() and not one.startswith(NAMES)] == []
    assert [one for one in found if one.endswith(".")] == []
