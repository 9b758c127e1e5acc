"""What a defender does: repair an encoder, leave samples out, or train another way. One file each in ``defences``."""

import abc
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from ssl_backdoor.specs.context import StageContext
from ssl_backdoor.specs.family import Among, Idea
from ssl_backdoor.specs.training import FitSpec, TrainSpec

if TYPE_CHECKING:
    from pathlib import Path

    from ssl_backdoor.data.dataset import Dataset
    from ssl_backdoor.detection.pool import Pool, Verdicts
    from ssl_backdoor.progress import OnProgress


class Defence(Idea):
    """A defence. It never sees the plan of an attack. Abstract: see the classes below."""

    family: ClassVar[str] = "defence"
    constants: ClassVar[Mapping[str, Any]] = {"trusted_fraction": 0.0}
    needs_captions: ClassVar[bool] = False
    """Whether it works on a model with a text tower alone."""
    if TYPE_CHECKING:  # a member has a field of the name, or the constant

        @property
        def trusted_fraction(self) -> float:
            """Share of the clean training images, of each class, that the defender may use."""


class Repair(Defence):
    """Encoder to encoder, with trusted clean data. Abstract."""

    constants: ClassVar[Mapping[str, Any]] = {"trusted_fraction": 0.0, "fit": None}
    loses_text_tower: ClassVar[bool] = False
    """Whether a repaired CLIP model could no longer classify by text."""
    if TYPE_CHECKING:

        @property
        def fit(self) -> FitSpec | None:
            """How its encoder is trained, where it is: several replicas may share that."""

    @abc.abstractmethod
    def repair(self, dataset: "Dataset", suspect: "Path", context: StageContext) -> dict[str, Any]:
        """Repair the encoder in folder ``suspect``; the result is left in ``context.out``.

        Args:
            dataset: the clean base data; ``defences.trusted.open_trusted`` takes the part that may be used.
            suspect: folder with ``backbone.safetensors`` and ``backbone.json``; read, never written.
            context: where to, under which seed, with what.

        Returns:
            The summary.

        Raises:
            CheckpointError: the suspect cannot be read.
            SpecError: there are fewer trusted images than needed, or the suspect is of a kind that cannot be repaired.
        """


class Filter(Defence):
    """Training samples to those that are kept; then an encoder is trained on them, as the run says. Abstract."""

    needs_encoder: ClassVar[bool] = False
    """Whether samples are judged by an encoder that was trained on all of them."""
    card: ClassVar[Mapping[str, str]] = {}
    """What its score can only be compared under: input_range, normalisation, divisor, ...; stored with every score."""

    @abc.abstractmethod
    def judge(self, pool: "Pool", encoder: "Path | None", seed: int, on_progress: "OnProgress") -> "Verdicts":
        """How suspicious each sample of ``pool`` is, and which are left out.

        Args:
            pool: the training samples, poisons among them, in an order that tells nothing.
            encoder: folder of the encoder, where ``needs_encoder``.
            seed: names every random stream.
            on_progress: told about once a second.
        """

    @property
    def uses_trusted(self) -> bool:
        """Whether it looks at trusted images, of which it needs some."""
        return False

    def most_left_out(self, num_samples: int) -> int:
        """At most so many of them; 0 where that is not known beforehand."""
        return 0

    def work(self, num_samples: int) -> float:
        """What its cost grows with, in units of its own, for an estimate."""
        return num_samples

    def fitted_to(self, num_samples: int) -> Self:
        """The same on few samples, for an estimate, where some of its fields would not fit."""
        return self


class RobustTraining(Defence):
    """Another way to train, from the start, on the data of either arm. Abstract."""

    @abc.abstractmethod
    def train(self, spec: TrainSpec) -> TrainSpec:
        """What is trained in place of ``spec``, where that is no misfit."""

    def misfit(self, spec: TrainSpec) -> str:
        """Why ``spec`` cannot be trained so, as "is for methods ..."; empty where it can."""
        return ""


OF_TWO_CROPS = "is for methods that pull the views of an image together, such as byol"
"""Why a training-time defence does not go with a method that does not."""


DefenceSpec = Annotated[Defence, Among("defence")]
