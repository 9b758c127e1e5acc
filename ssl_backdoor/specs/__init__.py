"""Every knob of an experiment: the pages to read first.

A ``Spec`` says WHAT is computed; equal specs mean equal science, and a spec's canonical JSON is part of the key of
every artifact made from it. ``Resources`` says HOW it runs and is never hashed. Nothing here imports torch.

Read in the order base, data, attack, training, defence, evaluation, experiment.

Two frames are named throughout. The *stored frame* is the image as decoded and, where ``frame_px`` is set, brought
to that side: poisons are stamped there, before any augmentation. The *evaluated frame* is the test image after
resize and crop: test triggers are stamped there.
"""

from ssl_backdoor.specs.attack import (
    AttackSpec,
    CaptionSet,
    Carlini2022BackdoorSpec,
    Carlini2022TargetedSpec,
    Codec,
    GridTriggerSpec,
    ImageTriggerSpec,
    NoAttackSpec,
    Saha2022TargetedSpec,
    Saha2022UntargetedSpec,
    TargetsSpec,
    TriggerSpec,
)
from ssl_backdoor.specs.base import Fraction, Spec, Stage
from ssl_backdoor.specs.data import (
    CaptionsSpec,
    DatasetSpec,
    FilesSourceSpec,
    ScenesSourceSpec,
    SourceCaptionsSpec,
    SourceSpec,
    TemplateCaptionsSpec,
)
from ssl_backdoor.specs.defence import CleanCLIPSpec, CompressSpec, DefenceSpec, DistilImageTowerSpec, NoDefenceSpec
from ssl_backdoor.specs.evaluation import EvaluationSpec, Probe
from ssl_backdoor.specs.experiment import (
    FigureSpec,
    PaperValue,
    ReportSpec,
    Resources,
    RunSpec,
)
from ssl_backdoor.specs.training import (
    AdamSpec,
    AdamWSpec,
    BackboneSpec,
    BYOLSpec,
    CLIPSpec,
    CosineSpec,
    FitSpec,
    JigsawSpec,
    MAESpec,
    MethodSpec,
    MilestonesSpec,
    MoCoV2Spec,
    MSFSpec,
    OpenCLIPSpec,
    OptimizerSpec,
    ResNetSpec,
    RotNetSpec,
    ScheduleSpec,
    SGDSpec,
    SimCLRSpec,
    SimSiamSpec,
    TrainSpec,
    ViewsSpec,
    ViTSpec,
)

__all__ = [
    "AdamSpec",
    "AdamWSpec",
    "AttackSpec",
    "BYOLSpec",
    "BackboneSpec",
    "CLIPSpec",
    "CaptionSet",
    "CaptionsSpec",
    "Carlini2022BackdoorSpec",
    "Carlini2022TargetedSpec",
    "CleanCLIPSpec",
    "Codec",
    "CompressSpec",
    "CosineSpec",
    "DatasetSpec",
    "DefenceSpec",
    "DistilImageTowerSpec",
    "EvaluationSpec",
    "FigureSpec",
    "FilesSourceSpec",
    "FitSpec",
    "Fraction",
    "GridTriggerSpec",
    "ImageTriggerSpec",
    "JigsawSpec",
    "MAESpec",
    "MSFSpec",
    "MethodSpec",
    "MilestonesSpec",
    "MoCoV2Spec",
    "NoAttackSpec",
    "NoDefenceSpec",
    "OpenCLIPSpec",
    "OptimizerSpec",
    "PaperValue",
    "Probe",
    "ReportSpec",
    "ResNetSpec",
    "Resources",
    "RotNetSpec",
    "RunSpec",
    "SGDSpec",
    "Saha2022TargetedSpec",
    "Saha2022UntargetedSpec",
    "ScenesSourceSpec",
    "ScheduleSpec",
    "SimCLRSpec",
    "SimSiamSpec",
    "SourceCaptionsSpec",
    "SourceSpec",
    "Spec",
    "Stage",
    "TargetsSpec",
    "TemplateCaptionsSpec",
    "TrainSpec",
    "TriggerSpec",
    "ViTSpec",
    "ViewsSpec",
]
