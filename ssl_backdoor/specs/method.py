"""How an encoder is pre-trained: fields here, networks and loss in ``methods``, one file each."""

import importlib
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from ssl_backdoor.specs.family import Among, Idea

if TYPE_CHECKING:
    from ssl_backdoor.methods.base import Replicas, SSLMethod
    from ssl_backdoor.specs.training import TrainSpec, ViewsSpec


class Method(Idea):
    """A self-supervised method. Abstract: a member names its ``network``, or overrides ``build``."""

    family: ClassVar[str] = "method"
    network: ClassVar[str]
    """Where its ``SSLMethod`` stands, as module:class; imported when it is built, for it imports torch."""
    backbone_kind: ClassVar[str] = "resnet"
    """Kind of the backbone that it trains; a method of resnets trains any external one as well."""
    has_text_tower: ClassVar[bool] = False
    """Whether it reads captions, and leaves a text tower."""
    has_two_crops: ClassVar[bool] = False
    """Whether its loss is given two random crops of an image, which may be drawn near each other."""
    mixes: ClassVar[bool] = False
    """Whether its loss takes mixed queries (``Batch.mix``), most through ``methods.base.pull``."""

    def build(self, train: "TrainSpec", seed: int, replicas: "Replicas | None" = None) -> "SSLMethod":
        """Fresh networks on the CPU, equal on every replica; ``train.method`` is this spec.

        Raises:
            SpecError: the backbone cannot be built.
        """
        module, name = self.network.split(":")
        network: Any = getattr(importlib.import_module(module), name)
        built: SSLMethod = network.build(train, seed, replicas)
        return built

    def views(self, views: "ViewsSpec") -> "tuple[ViewsSpec, ...]":
        """The views of one image that the loss is given, in its order; empty: all are ``views``."""
        return ()

    def backbone_px(self, views: "ViewsSpec") -> int:
        """Side of the images that the backbone is given, in px."""
        return views.size_px

    def check(self, train: "TrainSpec") -> None:
        """Refuse a training that this method cannot do, with a ValueError that says what to set."""


MethodSpec = Annotated[Method, Among("method")]
