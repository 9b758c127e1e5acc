"""Families of ideas: open unions, which a file of the user's own joins by defining a class.

An *idea* (a trigger, an attack, a defence, ...) is one class and mostly one file: its fields say WHAT is computed and
are in keys, its methods do the work and import what is heavy when they are called. ``BUILT_IN`` lists the files that
come with the project; a plug-in (``ssl_backdoor.plugins``) is one more. A field of type ``Annotated[Attack,
Among("attack")]`` takes any member, by its ``kind``.
"""

import importlib
from collections.abc import Mapping
from typing import Any, ClassVar, Union

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, PydanticKnownError, core_schema

from ssl_backdoor.specs.base import Spec

BUILT_IN: Mapping[str, tuple[str, ...]] = {
    "trigger": tuple(
        f"ssl_backdoor.poison.triggers.{name}"
        for name in (
            "badnets",
            "grid",
            "picture",
            "stripes",
            "blended",
            "sig",
            "frequency",
            "warp",
            "triangles",
            "text",
        )
    ),
    "attack": (
        "ssl_backdoor.specs.attack",
        "ssl_backdoor.poison.attacks.saha2022",
        "ssl_backdoor.poison.attacks.label_consistent",
        "ssl_backdoor.poison.attacks.carlini2022",
        "ssl_backdoor.poison.attacks.noisy_alignment",
        "ssl_backdoor.poison.attacks.corrupt_encoder",
        "ssl_backdoor.poison.attacks.poisoned_encoder",
        "ssl_backdoor.poison.attacks.ctrl2023",
        "ssl_backdoor.poison.attacks.mm_poison",
        "ssl_backdoor.tampering.badencoder",
        "ssl_backdoor.tampering.drupe",
    ),
    "method": ("ssl_backdoor.specs.training", "ssl_backdoor.defences.roclip", "ssl_backdoor.defences.safeclip"),
    "defence": (
        "ssl_backdoor.defences.distil_image_tower",
        "ssl_backdoor.defences.compress",
        "ssl_backdoor.defences.cleanclip",
        "ssl_backdoor.defences.fine_tuning",
        "ssl_backdoor.defences.par",
        "ssl_backdoor.defences.i_cutmix",
        "ssl_backdoor.defences.localized_cropping",
        "ssl_backdoor.defences.blur_luminance",
        "ssl_backdoor.defences.roclip",
        "ssl_backdoor.defences.safeclip",
        "ssl_backdoor.detection.duplicates",
        "ssl_backdoor.detection.clustered",
        "ssl_backdoor.detection.local_density",
        "ssl_backdoor.detection.image_text_similarity",
        "ssl_backdoor.detection.patchsearch",
    ),
    "detector": (
        "ssl_backdoor.detection.decree",
        "ssl_backdoor.detection.collapse",
        "ssl_backdoor.detection.ssl_cleanse",
        "ssl_backdoor.detection.backdoor_ids",
        "ssl_backdoor.detection.bdetclip",
        "ssl_backdoor.detection.subspace",
    ),
    "probe": ("ssl_backdoor.evaluate.standard_probes",),
    "metric": (),
}
"""Family -> the files of its built-in members, in the order in which forms and messages show them.

Of two members the one whose fields the other has too stands first: Prefect's form picks by the fields they share."""
_members: dict[str, dict[str, type["Idea"]]] = {}


class Idea(Spec):
    """A member of a family, told from the others by its ``kind``. Abstract.

    A class that sets ``family`` founds one; a class below it whose ``kind`` has a default joins it.
    """

    family: ClassVar[str]
    source_sha256: ClassVar[str] = ""
    """Digest of the code that a plug-in's member came with: part of every key that the member is in."""
    constants: ClassVar[Mapping[str, Any]] = {}
    """What any member can be asked for, and its value for those that have no field of that name."""
    kind: str

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        if "family" in vars(cls):
            return
        if cls.model_fields["kind"].is_required():
            return
        for name, value in cls.constants.items():
            if name not in cls.model_fields and not hasattr(cls, name):
                setattr(cls, name, value)
        kind = cls.model_fields["kind"].default
        members = _members.setdefault(cls.family, {})
        other = members.get(kind)
        if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(
                f"{cls.family} kind {kind!r} of {cls.__module__}.{cls.__qualname__} is taken by "
                f"{other.__module__}.{other.__qualname__}: give it another kind."
            )
        members[kind] = cls

    @property
    def label(self) -> str:
        """For people."""
        return self.kind


def members(family: str) -> dict[str, type[Idea]]:
    """Kind -> class of every member of ``family``: the built-in ones, then those of plug-ins."""
    for module in BUILT_IN[family]:
        importlib.import_module(module)
    first = built_in(family)
    return {one.model_fields["kind"].default: one for one in first} | _members.get(family, {})


def built_in(family: str) -> tuple[type[Idea], ...]:
    """The classes of ``family`` that come with the project, in the order of ``BUILT_IN``."""
    for module in BUILT_IN[family]:
        importlib.import_module(module)
    place = {module: index for index, module in enumerate(BUILT_IN[family])}
    own = [one for one in _members.get(family, {}).values() if one.__module__ in place]
    return tuple(sorted(own, key=lambda one: place[one.__module__]))


def every_member() -> tuple[type[Idea], ...]:
    """Of all families, those that are loaded."""
    return tuple(one for family in _members.values() for one in family.values())


def forget(module: str) -> None:
    """Take the members that ``module`` defined out of their families: it is to be loaded anew."""
    for family in _members.values():
        for kind in [kind for kind, one in family.items() if one.__module__ == module]:
            del family[kind]


class Among:
    """Reads a member of ``family`` from a mapping by its ``kind``, or from the bare kind where all else has defaults.

    ``others`` may stand there as well: a form's "as in the recipe".
    """

    def __init__(self, family: str, *others: type[Spec]) -> None:
        self._family = family
        self._others = others

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Of any member there is when a value is read."""
        return core_schema.no_info_plain_validator_function(
            self._read,
            serialization=core_schema.wrap_serializer_function_ser_schema(
                lambda value, serialise: serialise(value), schema=core_schema.any_schema()
            ),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """For forms: of the built-in members."""
        known: Any = (*self._others, *built_in(self._family)) or (Spec,)
        return handler(TypeAdapter(Union[known]).core_schema)  # noqa: UP007, of a tuple that is known at run time alone

    def _read(self, value: Any) -> Spec:
        if isinstance(value, Idea) and value.family == self._family:
            return value
        if isinstance(value, self._others):
            return value
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, Mapping):
            told = {"family": self._family, "value": f"{value!r:.80}"}
            raise PydanticCustomError("spec", "expected the fields of a {family}, found {value}", told)
        if not value and self._others:
            return self._others[0]()
        if "kind" not in value:
            raise PydanticKnownError("union_tag_not_found", {"discriminator": "'kind'"})
        known = members(self._family)
        if (member := known.get(str(value["kind"]))) is None:
            tags = ", ".join(repr(kind) for kind in known)
            raise PydanticKnownError(
                "union_tag_invalid", {"discriminator": "'kind'", "tag": str(value["kind"]), "expected_tags": tags}
            )
        return member.model_validate({name: one for name, one in value.items() if name != "source_sha256"})
