"""Ideas of the user's own: a Python file or module whose classes join the families, without an edit of the project.

A plug-in's code runs with the user's rights, here and in every process that works on its stages: its specs carry the
file's text along, so that workers on other machines need no copy of it. Its digest is in the keys of all that its
classes take part in: whoever edits the file computes anew. What the file imports from elsewhere is not in the digest.
"""

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ssl_backdoor.errors import SpecError
from ssl_backdoor.specs.family import BUILT_IN, Idea, every_member, forget, members

GROUP = "ssl_backdoor.plugins"
"""Entry points of installed packages: each names a module, which every run of the command and of a worker loads."""
_PREFIX = "ssl_backdoor_plugin_"


class Plugin(NamedTuple):
    """A loaded plug-in."""

    module: str
    file: str
    """Where its text came from; empty for a module that every process can import."""
    text: str


_loaded: dict[str, Plugin] = {}


def load(name: str) -> ModuleType:
    """The plug-in ``name``, a path that ends in .py or the name of a module: once, and anew where its file was edited.

    Raises:
        SpecError: there is none, or its code fails; the message names the line.
    """
    if not name.endswith(".py"):
        return _load(Plugin(name, "", ""))
    path = Path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise SpecError(
            f"a plug-in is a Python file or a module; {name!r} cannot be read ({reason}): give another path."
        ) from error
    if not path.stem.isidentifier():
        raise SpecError(f"a plug-in's file is named like a module, of letters, digits and _; found {path.name!r}.")
    plugin = Plugin(f"{_PREFIX}{path.stem}", str(path.resolve()), text)
    other = _loaded.get(plugin.module)
    if other is not None and other.file != plugin.file:
        raise SpecError(f"two plug-ins are named {path.stem}: {other.file} and {plugin.file}; rename one.")
    return _load(plugin)


def load_installed() -> None:
    """Every plug-in that installed packages offer.

    Raises:
        SpecError: one of them fails.
    """
    for one in entry_points(group=GROUP):
        load(one.value)


def find_code(sha256: str) -> ModuleType | None:
    """The loaded module whose text has this digest."""
    for one in _loaded.values():
        if one.file and text_digest(one.text) == sha256:
            return sys.modules[one.module]
    return None


def text_digest(text: str) -> str:
    """sha256 (hex) of a plug-in's text."""
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of(module: ModuleType) -> str:
    """``text_digest`` of what a module that ``load`` gave was made of."""
    return text_digest(_loaded[module.__name__].text)


def _load(plugin: Plugin) -> ModuleType:
    if _loaded.get(plugin.module) == plugin:
        return sys.modules[plugin.module]
    if plugin.file:
        forget(plugin.module)  # a module that something imported before is not run again
    before = set(every_member())
    try:
        module = _execute(plugin) if plugin.file else importlib.import_module(plugin.module)
    except Exception as error:
        sys.modules.pop(plugin.module, None)
        forget(plugin.module)
        place = next((f", line {one.lineno}" for one in _frames(error) if one.filename == plugin.file), "")
        raise SpecError(
            f"the plug-in {plugin.file or plugin.module}{place} cannot be loaded "
            f"({type(error).__name__}: {error}): fix it, or leave it out."
        ) from error
    _loaded[plugin.module] = plugin
    own = {module for modules in BUILT_IN.values() for module in modules}  # which a plug-in may have imported first
    for member in every_member():
        if member.__module__ in own or (member in before and member.__module__ != plugin.module):
            continue
        text = plugin.text if member.__module__ == plugin.module and plugin.file else _read_text(member)
        member.source_sha256 = text_digest(text)
        # A class is given its way to be pickled here, for only this module knows of plug-ins; mypy has no word for it.
        member.__reduce__ = _reduce  # type: ignore[method-assign, assignment]
    return module


def _execute(plugin: Plugin) -> ModuleType:
    """A module made of the plug-in's text, which need not lie on this machine."""
    module = ModuleType(plugin.module)
    module.__file__ = plugin.file
    sys.modules[plugin.module] = module
    code = compile(plugin.text, plugin.file, "exec")
    exec(code, vars(module))  # noqa: S102, what a plug-in is for
    return module


def _read_text(member: type[Idea]) -> str:
    return inspect.getsource(sys.modules[member.__module__])


def _frames(error: BaseException) -> Iterable[traceback.FrameSummary]:
    """The last first; of a syntax error the place that it names."""
    if isinstance(error, SyntaxError):
        yield traceback.FrameSummary(error.filename or "", error.lineno or 0, "")
    yield from reversed(traceback.extract_tb(error.__traceback__))


class _Carried:
    """Pickled before a plug-in's spec: where it is read, the plug-ins of this process are loaded first."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _carry, (tuple(_loaded.values()),)


CARRIED = _Carried()
"""One: what refers to it many times is pickled once."""


def _carry(plugins: tuple[Plugin, ...]) -> _Carried:
    for plugin in plugins:
        _load(plugin)
    return CARRIED


def _reduce(spec: Idea) -> tuple[Any, ...]:
    """How a plug-in's spec is pickled: another process may know neither its class nor its file."""
    return _restore, (CARRIED, spec.family, spec.kind, dict(spec))


def _restore(_: _Carried, family: str, kind: str, values: dict[str, Any]) -> Idea:
    return members(family)[kind].model_validate(values)
