"""What makes two computations the same: canonical JSON, hashed.

A key covers the stage, its version, its spec and the keys of its inputs. Fields equal to their default are
left out, so a new field with a neutral default keeps old artifacts valid; ``kind`` is never left out, since two
kinds may share every other default. Specs of a plug-in have the digest of its code with them. ``tests/golden/`` pins
defaults and keys.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ssl_backdoor.specs import Idea, Spec, Stage

# Raise a stage's number when the same spec would now compute something else.
STAGE_VERSION: Mapping[Stage, int] = {
    "ingest": 2,
    "poison": 1,
    "filter": 2,
    "train": 1,
    "tamper": 1,
    "defend": 1,
    "detect": 2,
    "evaluate": 3,
    "report": 8,
}


def canonical(value: Any) -> Any:
    """``value`` as plain JSON data: defaults omitted, ``kind`` kept, tuples as lists, floats as themselves."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        document = {
            name: canonical(getattr(value, name))
            for name in sorted(fields)
            if name == "kind" or fields[name].is_required() or getattr(value, name) != _default(fields[name])
        }
        if isinstance(value, Idea) and value.source_sha256:
            document["source_sha256"] = value.source_sha256
        return document
    if isinstance(value, Mapping):
        return {str(name): canonical(value[name]) for name in sorted(value)}
    if isinstance(value, tuple | list):
        return [canonical(item) for item in value]
    return value


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True, validated_data={})


def canonical_json(value: Any) -> str:
    """The one spelling of ``value``."""
    return json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def artifact_key(stage: Stage, spec: Spec, inputs: Mapping[str, str]) -> str:
    """sha256 (hex) of ``{stage, version, spec, inputs}``; ``inputs`` maps a role to a key or a source digest. Pure."""
    statement = {"stage": stage, "version": STAGE_VERSION[stage], "spec": canonical(spec), "inputs": dict(inputs)}
    return hashlib.sha256(canonical_json(statement).encode()).hexdigest()
