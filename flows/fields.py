"""What fields specs have, found along paths as ``--set`` takes them: train.method.kind, defences.*.fit.epochs."""

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from ssl_backdoor.errors import SpecError
from ssl_backdoor.specs import Idea, ReportSpec, RunSpec, Spec
from ssl_backdoor.specs.family import members
from ssl_backdoor.words import did_you_mean

Specs = tuple[type[BaseModel], ...]
ROOT: Specs = (RunSpec,)
_PLAIN = {bool: "true or false", int: "whole number", float: "number", str: "text"}
_BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than", "min_length": "length at least"}


class Place(NamedTuple):
    """What stands at a path: a field, specs that may be given there, or both."""

    specs: Specs
    field: FieldInfo | None = None


def find(path: str) -> Place:
    """What ``path`` names; a kind may stand behind a field: train.method.byol. "report" is a whole spec file.

    Raises:
        SpecError: there is no such field or kind.
    """
    place = Place(ROOT)
    steps = [step for step in path.split(".") if step]
    for depth, name in enumerate(steps):
        if depth == 0 and name == "report":
            place = Place((ReportSpec,))
            continue
        if (found := step(place.specs, name)) is None:
            known = names(place.specs)
            where = ".".join(steps[:depth]) or "a run"
            near = did_you_mean(name, known) or f"; it has {', '.join(known) or 'no fields'}"
            raise SpecError(f"{where} has no field or kind {name!r}{near}")
        place = found
    return place


def step(specs: Specs, name: str) -> Place | None:
    """Of ``specs`` those of the kind ``name``, or what their field of that name takes; an index leaves them."""
    if name == "*" or name.isdecimal():
        return Place(specs)
    if of_kind := tuple(one for one in specs if kind_of(one) == name):
        return Place(of_kind)
    fields = [one.model_fields[name] for one in specs if name in one.model_fields]
    taken = (spec for field in fields for spec in specs_in(field.annotation))
    return Place(tuple(dict.fromkeys(taken)), fields[0]) if fields else None


def specs_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The specs that ``annotation`` takes: every kind's, and of a list those of its items."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if issubclass(annotation, Idea) and annotation.model_fields["kind"].is_required():
            yield from (one for one in members(annotation.family).values() if issubclass(one, annotation))
        else:
            yield annotation
    else:
        for one in get_args(annotation):
            yield from specs_in(one)


def kind_of(spec: type[BaseModel]) -> str:
    """Its ``kind``; empty for a spec that stands alone."""
    return str(spec.model_fields["kind"].default) if "kind" in spec.model_fields else ""


def names(specs: Iterable[type[BaseModel]]) -> list[str]:
    """Fields and kinds that may follow in a path."""
    known = [name for spec in specs for name in (*spec.model_fields, kind_of(spec)) if name not in ("", "kind")]
    return list(dict.fromkeys(known))


def of_kind(path: Sequence[str], kind: str, before: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data of the spec of ``kind`` at ``path``: all defaults, and what has none as it was ``before``."""
    found: dict[str, Any] = {"kind": kind}
    specs = ROOT
    for name in path:
        place = step(specs, name)
        specs = place.specs if place is not None and place.field is not None else specs  # kinds and indices leave them
    for spec in specs:
        if kind_of(spec) == kind:
            for name, field in spec.model_fields.items():
                if not field.is_required():
                    found[name] = to_jsonable_python(field.get_default(call_default_factory=True, validated_data={}))
                elif name in before:
                    found[name] = before[name]
    return found


def describe(path: str) -> Iterator[str]:
    """Lines for people on what stands at ``path``: fields, types, defaults, allowed values, docstrings.

    Raises:
        SpecError: there is no such field or kind.
    """
    place = find(path)
    title = path.rstrip(".") or "a run"
    is_choice = len(place.specs) > 1 or (place.field is not None and any(map(kind_of, place.specs)))
    if place.field is not None and (is_choice or not place.specs):
        yield _field_line(title, place.field)
        yield from _text(place.field.description, "    ")
    if is_choice:
        for spec in place.specs:
            yield f"  kind {kind_of(spec)}: {next(_text(spec.__doc__, ''), '')}"
        yield f"next: ssl-backdoor describe {title}.{kind_of(place.specs[0])}"
    for spec in () if is_choice else place.specs:
        yield f"{title}: {' '.join(_text(spec.__doc__, ''))}"
        for name, field in spec.model_fields.items():
            yield _field_line(f"  {name}", field)
            yield from _text(field.description, "      ")
    if not path:
        yield "next: ssl-backdoor describe train.method, or describe report: what else a spec file holds"


def _field_line(title: str, field: FieldInfo) -> str:
    shown = "required" if field.is_required() else f"default {_value(field)}"
    return f"{title}: {_type(field.annotation, field.metadata)}; {shown}"


def _value(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, Spec):
        return str(getattr(value, "kind", "those of its fields"))
    if isinstance(value, tuple) and any(isinstance(one, Spec) for one in value):
        return ", ".join(str(getattr(one, "kind", "")) for one in value)
    return json.dumps(to_jsonable_python(value))


def _type(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """In words."""
    if hasattr(annotation, "__metadata__"):
        return _type(annotation.__origin__, (*metadata, *annotation.__metadata__))
    if isinstance(annotation, type) and issubclass(annotation, Idea) and not members(annotation.family):
        return f"a {annotation.family} of a plug-in"
    if specs := tuple(specs_in(annotation)):
        one = f"one of {', '.join(map(kind_of, specs))}" if len(specs) > 1 or kind_of(specs[0]) else "a group of fields"
        return f"list, each {one}" if get_origin(annotation) is tuple else one
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(map(str, get_args(annotation)))}"
    if get_origin(annotation) is tuple:
        items = [one for one in get_args(annotation) if one is not Ellipsis]
        return f"list, each {_type(items[0])}" if len(items) == 1 else f"list of {', '.join(map(_type, items))}"
    if get_origin(annotation) is Union or annotation is Any:
        return " or ".join(map(_type, get_args(annotation))) or "anything"
    rules = [rule for one in metadata for rule in (one.metadata if isinstance(one, FieldInfo) else [one])]
    bounds = [f"{word} {getattr(one, name)}" for one in rules for name, word in _BOUNDS.items() if hasattr(one, name)]
    return ", ".join([_PLAIN.get(annotation, getattr(annotation, "__name__", str(annotation))), *bounds])


def _text(text: str | None, indent: str) -> Iterator[str]:
    yield from (f"{indent}{line}".rstrip() for line in inspect.cleandoc(text or "").splitlines() if line.strip())
