"""Loss and gradients of one batch; on a GPU captured once as a CUDA graph and replayed, where the method supports it.

A small network's step is a thousand kernels of a few microseconds each, and to launch one costs the host as much. A
CUDA graph launches them all in one call: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
"""

import torch
from torch import Tensor

from ssl_backdoor.methods.base import Batch, LossOutput, Replicas, SSLMethod
from ssl_backdoor.methods.external import External

NUM_EAGER = 3
"""Steps before the one that is recorded: libraries choose their algorithms and take their working memory in them."""


class Gradients:
    """Calling it sets the parameters' gradients to those of ``batch``.

    Replayed if the device is a GPU, the method ``supports_cuda_graph`` and there is one replica; the numbers are
    those of the same kernels either way. Mixed batches, whose shares the host draws, are never replayed. All batches
    must have the first one's shapes.
    """

    def __init__(self, method: SSLMethod, autocast: torch.autocast, replicas: Replicas) -> None:
        self._method = method
        self._autocast = autocast
        on_gpu = next(method.parameters()).is_cuda
        is_ours = not isinstance(method.backbone, External)  # of another's network nobody knows what the host does
        self._replays = on_gpu and is_ours and method.supports_cuda_graph and replicas.count == 1
        self._num_calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._views: tuple[Tensor, ...] = ()
        self._output = LossOutput(torch.empty(()), {})

    def __call__(self, batch: Batch) -> LossOutput:
        """The output for ``batch``, detached."""
        self._num_calls += 1
        if not self._replays or self._num_calls <= NUM_EAGER or batch.mix is not None:
            return self._pass(batch)
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            self._views = tuple(torch.empty_like(view) for view in batch.views)
            here = torch.cuda.device_of(self._views[0])
            # Other threads, which prefetch images, may use the device meanwhile.
            with here, torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._output = self._pass(Batch(self._views))
        for static, view in zip(self._views, batch.views, strict=True):
            static.copy_(view)
        self._graph.replay()
        loss, logs = self._output
        return LossOutput(loss.clone(), {name: value.clone() for name, value in logs.items()})

    def _pass(self, batch: Batch) -> LossOutput:
        self._method.zero_grad(set_to_none=True)
        with self._autocast:
            loss, logs = self._method.loss(batch)
        torch.autograd.backward(loss)
        return LossOutput(loss.detach(), logs)
