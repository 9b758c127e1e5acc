"""Spec files: the runs of a recipe as YAML or JSON that a person can read, change and run again.

A file holds a whole ``ReportSpec``, or the fields of one run. What is left out has its default. Files are data: no tag
makes an object, a key stands once, and what aliases stand for is counted before it is built.
"""

import json
import re
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from flows.overrides import describe
from flows.recipes.demo import ask
from ssl_backdoor.errors import SpecError, to_printable_line
from ssl_backdoor.specs import ReportSpec

SUFFIXES = (".yaml", ".yml", ".json")
_MAX_BYTES = 16 * 2**20
_MAX_NODES = 2_000_000
"""With each alias counted as what it stands for: ten thousand runs."""
_MAX_DEPTH = 50
_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?[0-9]+", [*"-+0123456789"]),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", [*"-+.0123456789"]),
    ("merge", r"<<", ["<"]),
)
"""YAML 1.2's, in which no, on and 1:30 are text: classes are called so."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # of libyaml, where it is there
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012, as the base class has it


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012, as the base class has it

    def ignore_aliases(self, data: Any) -> bool:
        """Only whole groups of fields are worth a name."""
        return not (isinstance(data, dict | list) and data)

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        """A list of plain values on one line."""
        is_plain = not any(isinstance(one, dict | list) for one in sequence)
        return super().represent_sequence(tag, sequence, flow_style=is_plain)


for _name, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node)))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(loader.construct_scalar(node)))


def write(report: ReportSpec, *, as_json: bool = False) -> str:
    """``report`` with all defaults. In YAML what runs share is written once, at the first."""
    document = report.model_dump(mode="json")
    if as_json:
        return json.dumps(document, indent=2)
    shared: dict[str, Any] = {}
    for run in document["runs"]:
        for name, value in run.items():
            run[name] = shared.setdefault(json.dumps(value), value) if isinstance(value, dict | list) else value
    text = _dump(document, allow_unicode=True)
    return text if all(line.isprintable() for line in text.split("\n")) else _dump(document, allow_unicode=False)


def _dump(document: Any, *, allow_unicode: bool) -> str:
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=allow_unicode)


def read(path: str) -> ReportSpec:
    """The report of a spec file; of a single run a report named after the file.

    Raises:
        SpecError: it cannot be read, or is no spec; the message names the line of an error of syntax.
    """
    file = Path(path)
    try:
        with file.open("rb") as opened:
            data = opened.read(_MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text in UTF-8"
        raise SpecError(f"expected a spec file, {path!r} cannot be read ({reason}): give another path") from error
    if len(data) > _MAX_BYTES:
        raise SpecError(f"{path}: a spec file has at most {_MAX_BYTES // 2**20} MiB, this one has more")
    document = _json(path, text) if file.suffix.lower() == ".json" else _yaml(path, text)
    if not isinstance(document, dict):
        raise SpecError(f"{path}: expected fields such as recipe and runs, found {type(document).__name__}")
    if "runs" not in document:
        document = {"runs": [document]}
    try:
        report = ReportSpec.model_validate({"recipe": file.stem, "question": "", **document})
    except ValidationError as error:
        raise SpecError(f"{path}: {describe(error, document, (ReportSpec,))}") from error
    if not report.runs:
        raise SpecError(f"{path}: expected one run or more in runs, found none")
    return report if report.question else report.model_copy(update={"question": ask(report.runs)})


def _yaml(path: str, text: str) -> Any:
    try:
        _check_depth(path, text)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_nodes(path, node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        found = ", ".join(part for part in (error.context, error.problem) if part)
        raise SpecError(f"{path}{line}: {found}; correct it") from error
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise SpecError(f"{path}: {str(error).splitlines()[0]}; correct it") from error
    except SpecError:
        raise
    except (ValueError, KeyError, AttributeError) as error:  # of a value that is not what its tag says
        raise SpecError(f"{path}: a value is none of its type ({to_printable_line(str(error))[:80]})") from error


def _check_depth(path: str, text: str) -> None:
    """Told from the events, which come one by one: libyaml makes nodes in C, where deep ones end the process."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            where = f" line {event.start_mark.line + 1}" if event.start_mark else ""
            raise SpecError(f"{path}{where}: lists and groups lie in one another more than {_MAX_DEPTH} deep")


def _check_nodes(path: str, root: yaml.Node) -> None:
    """Refuse a key that stands twice, an alias of what it lies in, and aliases that stand for too much."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        place = id(node)
        if place in sizes or isinstance(node, yaml.ScalarNode):
            return sizes.get(place, 1)
        line = node.start_mark.line + 1
        if place in open_nodes:
            raise SpecError(f"{path} line {line}: an alias stands within what it names; write it out")
        open_nodes.add(place)
        sizes[place] = 1 + sum(size(one) for one in _children(path, node))
        open_nodes.remove(place)
        if sizes[place] > _MAX_NODES:
            raise SpecError(f"{path} line {line}: its aliases stand for more than {_MAX_NODES:,} values")
        return sizes[place]

    size(root)


def _children(path: str, node: yaml.Node) -> Iterator[yaml.Node]:
    if not isinstance(node, yaml.MappingNode):
        yield from node.value
        return
    seen: set[Hashable] = set()
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise SpecError(f"{path} line {key.start_mark.line + 1}: expected the name of a field before the colon")
        if key.value in seen:
            raise SpecError(f"{path} line {key.start_mark.line + 1}: {key.value!r} stands twice; leave one out")
        seen.add(key.value)
        yield value


def _json(path: str, text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise SpecError(f"{path}: {twice!r} stands twice; leave one out")
        return found

    def refuse(constant: str) -> Any:
        raise SpecError(f"{path}: expected finite numbers, found {constant}")

    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise SpecError(f"{path} line {error.lineno}: {error.msg}; correct it") from error
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path}: {str(error).splitlines()[0]}; correct it") from error
