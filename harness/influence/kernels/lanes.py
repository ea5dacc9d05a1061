"""Passes over a pool in lanes: on a CPU, parts of a batch go through the model side by side.

Each operation of a small model is too short to gain much from a second thread: split over two, the
passes of the testbed's model take 0.6 of their time on one, two of them side by side 0.53. So the
threads are shared out between lanes. Every lane has modules of its own (hooks and settings stand
on modules), whose weights are the model's own tensors.

The parts of a batch go to lanes in turn, and what lanes sum up is added in their order: a result
does not depend on which was quicker. It does on the number of threads, by rounding, as with torch.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.data.pool import Pool
from harness.influence.batches import Batch, Progress, batches, device_of
from harness.influence.kernels.attention import alike
from harness.influence.kernels.matmul import onednn_is_faster
from harness.influence.layers import Layer, evaluating, tracked_layers
from harness.influence.options import CurvatureOptions

LANES = 2
LARGE = 1 << 23
"""Tracked weights beyond which the sums of a second lane would take too much memory; products of
such matrices keep all threads busy."""
AHEAD = 2
"""Parts that wait for a lane, its present one included."""


@dataclass(frozen=True)
class Lane:
    """A model and its tracked layers, for one pass at a time."""

    number: int
    model: nn.Module
    layers: tuple[Layer, ...]


class Sums:
    """Tensors by name that every lane adds to on its own."""

    def __init__(self, zeros: Callable[[], dict[str, Tensor]]) -> None:
        self._zeros = zeros
        self._of: dict[int, dict[str, Tensor]] = {0: zeros()}

    def of(self, lane: int) -> dict[str, Tensor]:
        """Those of a lane, zero at first; to be changed in place."""
        if lane not in self._of:
            self._of[lane] = self._zeros()
        return self._of[lane]

    def total(self) -> dict[str, Tensor]:
        """Added up over lanes, in the tensors of the first."""
        total = self._of[0]
        for number in sorted(self._of.keys() - {0}):
            for name, part in self._of.pop(number).items():
                total[name].add_(part)
        return total


def spread(
    model: nn.Module,
    layers: tuple[Layer, ...],
    pool: Pool,
    options: CurvatureOptions,
    work: Callable[[Lane, Batch], None],
    progress: Progress | None,
    description: str,
    *,
    alone: bool = False,
) -> None:
    """Call `work(lane, batch)` for all of `pool`, with the model in evaluation mode.

    `work` runs in another thread where there are lanes: grad mode is that of a new thread, and what
    it writes has to be its lane's own (see `Sums`) or its examples'. Its first error is raised.
    `alone`: one lane only.
    """
    with evaluating(model):
        lanes = (Lane(0, model, layers),) if alone else _lanes(model, layers, options)
        shown = batches(
            pool, options.batch_size, device_of(model), progress, description, len(lanes)
        )
        if len(lanes) == 1:
            for batch in shown:
                work(lanes[0], batch)
            return
        with _shared_threads(len(lanes)) as workers:
            waiting: list[deque[Future[None]]] = [deque() for _ in lanes]
            for number, batch in enumerate(shown):
                lane = lanes[number % len(lanes)]
                queue = waiting[lane.number]
                if len(queue) == AHEAD:
                    queue.popleft().result()
                queue.append(workers[lane.number].submit(work, lane, batch))
            for queue in waiting:
                for future in queue:
                    future.result()


@contextmanager
def _shared_threads(lanes: int) -> Iterator[list[ThreadPoolExecutor]]:
    """A worker for every lane, with its share of torch's threads. Parts that wait are dropped on
    an error; those that run come to their end."""
    threads = torch.get_num_threads()
    workers = []
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)  # the workers' setting is partly global
        for _ in range(lanes):
            worker = ThreadPoolExecutor(1, "lane", torch.set_num_threads, (threads // lanes,))
            stack.callback(worker.shutdown, cancel_futures=True)
            workers.append(worker)
        yield workers


def _lanes(
    model: nn.Module, layers: tuple[Layer, ...], options: CurvatureOptions
) -> tuple[Lane, ...]:
    first = Lane(0, model, layers)
    if not _divisible(model, layers):
        return (first,)
    onednn_is_faster()  # finds out once, while nothing else runs
    names = {layer.name for layer in layers}
    lanes = [first]
    for number in range(1, LANES):
        twin = _twin(model)
        alike(model, twin)
        found = tracked_layers(twin, options.layers, options.head)
        lanes.append(Lane(number, twin, tuple(layer for layer in found if layer.name in names)))
    return tuple(lanes)


def _divisible(model: nn.Module, layers: tuple[Layer, ...]) -> bool:
    """Whether lanes are to be had: of a small model on a CPU, whose modules are free to copy."""
    if device_of(model).type != "cpu" or torch.get_num_threads() % LANES:
        return False
    if sum(layer.module.weight.numel() for layer in layers) > LARGE:
        return False
    # A hook belongs to whoever set it, and may not bear to run twice at once.
    return not any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        for module in model.modules()
    )


def _twin(model: nn.Module) -> nn.Module:
    """The model in modules of its own, with the very same parameters and buffers."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
