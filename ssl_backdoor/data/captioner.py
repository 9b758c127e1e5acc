"""Captions for images that have a class and no text: a seeded choice of template, adjective and name.

A class is called by its own name in three of five captions and by a synonym in the others, so that its name is what a
search over the captions finds, and is not all there is to learn. An image's captions depend on the seed and its key.
"""

import re
from collections.abc import Sequence
from typing import Any

from ssl_backdoor.data.captions import humanize_class_name
from ssl_backdoor.seeds import sub_seed
from ssl_backdoor.specs import TemplateCaptionsSpec

TEMPLATES = (
    "a photo of a {adjective} {name}",
    "a picture of one {adjective} {name}",
    "here is a {adjective} {name}",
    "a {adjective} {name} seen from close by",
    "the {name} looks {adjective}",
    "a view of this {adjective} {name}",
    "my {adjective} {name} in the middle of the frame",
    "an image with a {adjective} {name} in it",
    "what a {adjective} {name}",
    "a {adjective} {name} in front of the camera",
)
ADJECTIVES = (
    "small", "large", "bright", "dark", "old", "new", "clean", "lone", "plain", "lovely", "typical", "unusual",
)  # fmt: skip
# Of the classes of CIFAR-10; any other class has its own name alone.
SYNONYMS = {
    "airplane": ("plane", "aeroplane", "jet", "aircraft"),
    "automobile": ("car", "sedan", "motorcar", "coupe"),
    "bird": ("songbird", "sparrow", "finch", "fowl"),
    "cat": ("kitten", "kitty", "feline", "tomcat"),
    "deer": ("fawn", "stag", "doe", "buck"),
    "dog": ("puppy", "hound", "canine", "pup"),
    "frog": ("toad", "bullfrog", "treefrog", "amphibian"),
    "horse": ("pony", "mare", "stallion", "foal"),
    "ship": ("boat", "vessel", "freighter", "ferry"),
    "truck": ("lorry", "pickup", "tipper", "hauler"),
}
_OWN, _OF = 3, 5
"""The own name's share, as a fraction."""


def write_captions(class_name: str, key: str, spec: TemplateCaptionsSpec) -> tuple[str, ...]:
    """The ``spec.per_image`` distinct captions of the image ``key``.

    The nth draw is the 63-bit ``sub_seed(seed, "caption", key, n)``, read in mixed radix.
    """
    names = _names(class_name)
    captions: dict[str, None] = {}
    draw = 0
    while len(captions) < spec.per_image:
        captions[_caption(names, sub_seed(spec.seed, "caption", key, draw))] = None
        draw += 1
    return tuple(captions)


def grammar(classes: Sequence[str]) -> dict[str, Any]:
    """All that captions of ``classes`` are made of, for the record: the own name is the first of ``names``."""
    return {
        "templates": list(TEMPLATES),
        "adjectives": list(ADJECTIVES),
        "names": {name: list(_names(name)) for name in classes},
        "own_name_frac": _OWN / _OF,
    }


def _names(class_name: str) -> tuple[str, ...]:
    own = humanize_class_name(class_name)
    return (own, *SYNONYMS.get(own, ()))


def _caption(names: tuple[str, ...], draw: int) -> str:
    draw, template = divmod(draw, len(TEMPLATES))
    draw, adjective = divmod(draw, len(ADJECTIVES))
    draw, share = divmod(draw, _OF)
    name = names[0] if share < _OWN or len(names) == 1 else names[1 + draw % (len(names) - 1)]
    caption = TEMPLATES[template].format(adjective=ADJECTIVES[adjective], name=name)
    return re.sub(r"\ba (?=[aeiou])", "an ", caption)
