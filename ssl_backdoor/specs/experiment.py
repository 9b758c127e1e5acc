"""One experiment, a report over several, and how they are run."""

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ssl_backdoor.specs.attack import AttackSpec, TamperAttack
from ssl_backdoor.specs.base import Spec, Stage
from ssl_backdoor.specs.data import DatasetSpec
from ssl_backdoor.specs.defence import Defence, DefenceSpec, Repair, RobustTraining
from ssl_backdoor.specs.detector import DetectorSpec
from ssl_backdoor.specs.evaluation import EvaluationSpec
from ssl_backdoor.specs.training import ResNetSpec, TrainSpec


class OwnDataSpec(Spec):
    """Probes learn and are tested on the data that the encoder was trained on."""

    kind: Literal["own"] = "own"


class OtherDataSpec(Spec):
    """Probes learn and are tested on another labelled set, given at run time (--probe-data): transfer.

    The trigger is the attack's; its target class is none of theirs.
    """

    kind: Literal["other"] = "other"
    dataset: DatasetSpec = DatasetSpec()


ProbeOnSpec = Annotated[OwnDataSpec | OtherDataSpec, Field(discriminator="kind")]


TrainedOn = Literal["clean", "poisoned"]
TRAINED_ON: tuple[TrainedOn, ...] = ("clean", "poisoned")


class Arm(NamedTuple):
    """One encoder of a run: what it was trained on, and which defence was tried on that."""

    trained_on: TrainedOn
    name: str = ""
    """Of the defence, different for each of a run; empty for none."""
    defence: Defence | None = None

    @property
    def role(self) -> str:
        """Under which its artifacts are told from those of other arms: "poisoned+compress"."""
        return f"{self.trained_on}+{self.name}" if self.name else self.trained_on

    @property
    def label(self) -> str:
        """For people: "poisoned + CompRess"."""
        first = "clean-trained" if self.trained_on == "clean" else "poisoned"
        number = self.name.removeprefix(self.defence.kind).replace("-", " ") if self.defence else ""
        return f"{first} + {self.defence.label}{number}" if self.defence else first


class RunSpec(Spec):
    """One experiment, end to end. Named examples live in flows/recipes/."""

    dataset: DatasetSpec
    attack: AttackSpec
    train: TrainSpec
    defences: tuple[DefenceSpec, ...] = ()
    """Each is tried by itself, on the poisoned encoder and on the clean-trained one."""
    detectors: tuple[DetectorSpec, ...] = ()
    """Each judges the poisoned encoder, and the clean-trained one for its false alarms."""
    siblings: int = Field(default=0, ge=0, le=999)
    """Clean encoders of the same training under other seeds, the first ones but this run's, that each detector of
    encoders judges as well: an encoder's p-value is its score's rank among theirs, at least 1 / (siblings + 1). Runs
    share them, and they are the clean-trained encoders of the runs that have those seeds. With none there is no
    p-value."""
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec)
    probe_on: ProbeOnSpec = OwnDataSpec()
    seed: int = Field(default=0, ge=0)
    variant: str = ""
    """Name of a side condition shown beside the main one (such as another poison fraction); empty is the main one."""

    @model_validator(mode="after")
    def _reads_captions(self) -> Self:
        """What works through captions needs a method that reads them, and the reverse for CompRess."""
        is_clip = self.train.method.has_text_tower
        needs_clip = {
            f"attack {self.attack.kind}": self.attack.adds_pairs or self.attack.reads_captions,
            **{f"defence {one.kind}": one.needs_captions for one in self.defences},
            **{f"detector {one.kind}": one.needs_captions for one in self.detectors},
            **{f"probe {one.kind}": one.needs_text_tower for one in self.evaluation.probes},
        }
        if bad := [what for what, needs in needs_clip.items() if needs and not is_clip]:
            raise ValueError(f"{bad[0]} needs method clip, found method {self.train.method.kind}")
        for probe in self.evaluation.probes:
            if probe.needs_resnet and not isinstance(self.train.backbone, ResNetSpec):
                raise ValueError(f"probe {probe.kind} reads the layers of a resnet, found {self.train.backbone.kind}")
        for one in self.defences:
            if isinstance(one, RobustTraining) and (misfit := one.misfit(self.train)):
                raise ValueError(f"defence {one.kind} {misfit}, found method {self.train.method.kind}; leave it out")
            if is_clip and isinstance(one, Repair) and one.loses_text_tower:
                raise ValueError(
                    f"defence {one.kind} loses CLIP's zero-shot classification: use distil_image_tower or cleanclip"
                )
        return self

    @model_validator(mode="after")
    def _stamps_inputs(self) -> Self:
        """Detectors of inputs are shown them under the attack's trigger."""
        for one in self.detectors:
            if one.level == "input" and self.attack.trigger is None:
                raise ValueError(
                    f"detector {one.kind} judges test images under a trigger, but attack {self.attack.kind} has none; "
                    "leave the detector out, or set an attack with a trigger"
                )
        return self

    @property
    def sibling_seeds(self) -> tuple[int, ...]:
        """Of ``siblings``."""
        return tuple(seed for seed in range(self.siblings + 1) if seed != self.seed)[: self.siblings]

    @property
    def label(self) -> str:
        """The run for people: its pair, number of poisons, variant and seed."""
        parts = (self.attack.label, self.attack.amount, self.variant, f"seed {self.seed}")
        return ", ".join(part for part in parts if part)

    def made_in(self, arm: "Arm") -> Stage:
        """The stage that leaves the encoder of ``arm``."""
        if isinstance(arm.defence, Repair):
            return "defend"
        is_tampered = isinstance(self.attack, TamperAttack) and arm.trained_on == "poisoned" and arm.defence is None
        return "tamper" if is_tampered else "train"

    @property
    def arms(self) -> "tuple[Arm, ...]":
        """Whatever is trained and evaluated: each by itself, then each under each defence."""
        kinds = [one.kind for one in self.defences]
        before = [kinds[:at].count(kind) for at, kind in enumerate(kinds)]
        names = [f"{kind}-{count + 1}" if count else kind for kind, count in zip(kinds, before, strict=True)]
        defended = [Arm(on, name, one) for name, one in zip(names, self.defences, strict=True) for on in TRAINED_ON]
        return (*(Arm(on) for on in TRAINED_ON), *defended)


class PaperValue(Spec):
    """What a paper says at one point of a figure, shown beside ours."""

    x: float
    measure: str
    value: float
    is_verified: bool = False
    """Read in the paper; otherwise recalled, and shown as unverified."""


class FigureSpec(Spec):
    """One figure of Carlini & Terzis 2022: measures over an axis, from the runs under one attack."""

    name: str
    title: str
    attack: str
    """Kind of attack whose runs are shown."""
    axis: Literal["num_poisons", "num_train", "num_parameters", "patch_frac", "similarity", "same_label"]
    """Of each run: poisons (per pair where targeted; 0 is the control), clean training images, parameters of the image
    tower, side of the patch over that of the image. similarity: a histogram over pairs of images, not a curve;
    same_label: the share of clean pairs that are given one label, by their cosine."""
    measures: tuple[str, ...]
    """"name/probe" of what is drawn, such as "targeted_success/zero_shot"."""
    paper: tuple[PaperValue, ...] = ()


class PaperCell(Spec):
    """What a paper says in one cell of a table, shown beside ours."""

    row: str
    """Label of the row."""
    arm: Literal["control", "suspect", "student", "distilled_control"]
    condition: Literal["clean", "triggered"]
    name: str
    """Measurement, such as target_false_positives."""
    value: float
    is_verified: bool = False
    """Read in the paper; otherwise recalled, and shown as unverified."""
    num_images: int = Field(default=0, ge=0)
    """Of a count: over how many images it is, so that the share is shown, which compares."""


class TableRow(Spec):
    """One line of a table: the runs of one variant."""

    label: str
    variant: str = ""
    arm: Literal["", "control", "suspect", "student", "distilled_control"] = ""
    """The encoder that the line is about; empty: control and suspect side by side, the paper's four cells."""


class TableSpec(Spec):
    """A paper's table: a line a variant or encoder; accuracy and false positives on clean and on triggered images."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    """Stem of its files."""
    title: str
    rows: tuple[TableRow, ...]
    probe: str
    """Which probe's numbers: "linear_100", "knn", ..."""
    measures: tuple[str, ...] = ("accuracy", "target_false_positives")
    """Of each cell; the last one is what is compared with the control."""
    paper: tuple[PaperCell, ...] = ()


class ReportSpec(Spec):
    """A named question and the runs that answer it."""

    kind: Literal["report"] = "report"
    recipe: str
    question: str
    note: str = ""
    """What the reader must know before quoting a number; shown first."""
    runs: tuple[RunSpec, ...]
    figures: tuple[FigureSpec, ...] = ()
    """Figures of Carlini & Terzis 2022 among ``runs``; runs under other attacks are paired with their controls."""
    tables: tuple[TableSpec, ...] = ()
    """Tables over the variants of ``runs``, as in Saha et al. 2022."""
    unit: Literal["pair", "seed"] = "pair"
    """What intervals are over. pair: pairs, seeds averaged within each, where there are two pairs or more; seed: seeds,
    pairs averaged within each, where there are two seeds or more."""
    show_recalled: bool = False
    """Whether the papers' values that were recalled, not read, are shown."""
    missing: tuple[str, ...] = ()
    """Runs that were asked for and failed, each with its cause; shown on the page."""


class Resources(BaseModel):
    """How it runs: never hashed, never stored in a key."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    workers: int = Field(default=1, ge=1, le=1024)
    """Replicas of one training; must divide its bn_groups."""
    min_workers: int = Field(default=0, ge=0, le=1024)
    """While the cluster lacks nodes a training goes on with as few replicas as this; 0 needs all of them."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gpu_fraction: float = Field(default=1.0, ge=0.01, le=1.0)
    """Share of a GPU that a stage without replicas takes on Ray: with 0.125 eight small trainings share one, and its
    memory, which nothing divides between them. Results do not change."""
    threads: int = Field(default=1, ge=1, le=1024)
    """CPU threads of one replica. One thread each, many trainings at once, is fastest on small networks."""
    parallel: int = Field(default=0, ge=0)
    """Stages that run at once; 0 uses the machine's CPUs (or the cluster's)."""
    max_retries: int = Field(default=3, ge=0)
    """Restarts of a training whose worker process died."""
    store_retries: int = Field(default=3, ge=0, le=20)
    """Further attempts of a stage while the artifact store does not answer, after growing pauses of 5 to 60 s."""
    stage_timeout_s: float = Field(default=0.0, ge=0)
    """A stage on Ray ends as failed after so many seconds of its own work; 0 sets no limit."""
    checkpoint_every_steps: int = Field(default=250, ge=1)
    max_resident_bytes: int = Field(default=8 * 2**30, ge=0)
    """Training images are held decoded in memory up to so many bytes, else decoded from the shards as steps need them:
    the same batches, slower."""

    @model_validator(mode="after")
    def _fewer_than_all(self) -> Self:
        if self.min_workers > self.workers:
            raise ValueError(f"min_workers is at most workers ({self.workers}), found {self.min_workers}")
        return self
