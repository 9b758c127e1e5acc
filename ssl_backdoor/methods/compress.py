"""CompRess (Koohpayegani et al. 2020), https://arxiv.org/abs/2010.14713, as the defence of Saha et al. 2022.

The suspect is the teacher: frozen, in eval mode. A fresh student of the same architecture learns, on trusted images
alone, to rank a queue of earlier images as the teacher ranks them; what only triggered images excite in the teacher
is not passed on. Compared with https://github.com/UMBCvision/CompRess: train_student.py (cf33bab, two queues),
train_student_one_queue.py (c5e57ed) and nn/compress_loss.py (b9ec6ea).

Shapes: b images of this replica, B images of all replicas, Ds and Dt features of student and teacher, K queue.
"""

from typing import TYPE_CHECKING, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_backdoor.methods.backbones import ResNet, build_with_torchvision_init
from ssl_backdoor.methods.base import Batch, LossOutput, Replicas, SingleProcess, SSLMethod, views_of
from ssl_backdoor.methods.external import External
from ssl_backdoor.methods.losses import similarity_divergence
from ssl_backdoor.methods.parts import EMACopy, Queue
from ssl_backdoor.methods.vit import ViT
from ssl_backdoor.seeds import torch_generator

if TYPE_CHECKING:
    from ssl_backdoor.defences.compress import CompressSpec


@final
class CompRess(SSLMethod):
    """Frozen teacher, fresh student, and the queues that both are compared on.

    With two queues the student's is filled by an EMA copy of the student (BatchNorm in training mode). With one, the
    teacher's serves both, and a linear layer, dropped at the end, takes the student's features to the teacher's space.

    NOTE: upstream keeps the incomplete last batch of an epoch; here it is dropped, as in every fit of this project.
    """

    num_views = 1

    def __init__(
        self,
        spec: "CompressSpec",
        teacher: ResNet | ViT | External,
        student: ResNet | ViT | External,
        seed: int,
        replicas: Replicas | None = None,
    ):
        super().__init__()
        self.spec = spec
        self.replicas = replicas or SingleProcess()
        # Kept in a tuple so that nn.Module does not register the teacher: not optimised, saved or set to training mode.
        self.teacher = (teacher.eval().requires_grad_(False),)
        self.backbone = student
        self.teacher_queue = Queue(_first_rows(spec.queue_size, teacher.feature_dim, seed, "teacher_queue"))
        self.new_rows: tuple[Tensor, ...] = ()
        self.mapper: nn.Module = nn.Identity()
        self.student_key: EMACopy | None = None
        self.student_queue: Queue | None = None
        if spec.num_queues == 1:
            dims = student.feature_dim, teacher.feature_dim
            self.mapper = build_with_torchvision_init(lambda: nn.Linear(*dims), torch_generator(seed, "mapper"))
        else:
            self.student_key = EMACopy(student)
            self.student_queue = Queue(_first_rows(spec.queue_size, student.feature_dim, seed, "student_queue"))

    @property
    def supports_cuda_graph(self) -> bool:
        """True: every step launches the same kernels."""
        return True

    def loss(self, batch: Batch) -> LossOutput:
        """KL from the teacher's to the student's similarities with the queues as they were before this batch."""
        (images,) = views_of(batch, self.num_views)
        with torch.no_grad():
            teacher = F.normalize(self.teacher[0](images).float(), dim=1)  # (b, Dt)
        student = F.normalize(self.mapper(self.backbone(images)).float(), dim=1)  # (b, Ds)
        self.new_rows = (self.replicas.all_gather(teacher),)
        student_queue = self.teacher_queue
        if self.student_key is not None and self.student_queue is not None:
            key = F.normalize(self.student_key(images).float(), dim=1)
            self.new_rows = (*self.new_rows, self.replicas.all_gather(key))
            student_queue = self.student_queue
        divergence = similarity_divergence(
            student, teacher, student_queue.rows, self.teacher_queue.rows, self.spec.temperature
        )
        return LossOutput(divergence, {})

    def after_step(self, progress: float) -> None:
        """Push the batch into the queues; update the EMA copy of the student."""
        queues = [queue for queue in (self.teacher_queue, self.student_queue) if queue is not None]
        for queue, rows in zip(queues, self.new_rows, strict=False):
            queue.push(rows)
        if self.student_key is not None:
            self.student_key.update((self.backbone,), self.spec.ema_decay)


def _first_rows(size: int, dim: int, seed: int, role: str) -> Tensor:
    """Uniform in +-1 / sqrt(dim / 3), (size, dim): about unit length, not normalised (compress_loss.py, line 41)."""
    bound = (dim / 3) ** -0.5
    return torch.empty(size, dim).uniform_(-bound, bound, generator=torch_generator(seed, role))
