"""What a process may use and how fast it is, on known machines and on this one; all-reduce."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from aqnet.config import Config

if TYPE_CHECKING:
    from aqnet.plan.rehearsal import Rehearsal

GB = 1e9


@dataclass(frozen=True)
class Rates:
    """How fast one process (a GPU) is, per second.

    Attributes:
        flops: by the kinds of `Rehearsal.flops`.
        bandwidth: bytes that all other operations read and write.
        link, link_latency: bytes between two processes of a node, and seconds.
        network, network_latency: bytes into a node from the others, and seconds.
    """

    flops: dict[str, float]
    bandwidth: float
    link: float
    link_latency: float
    network: float
    network_latency: float

    def seconds(self, rehearsal: Rehearsal) -> tuple[float, float]:
        """Seconds of a micro-batch's forward and backward, and of AdamW's update."""
        products = sum(flops / self.flops[kind] for kind, flops in rehearsal.flops.items())
        update = 7 * 4.0 * rehearsal.parameters  # bytes: it reads four numbers and writes three
        return products + rehearsal.moved / self.bandwidth, update / self.bandwidth


@dataclass(frozen=True)
class Machine:
    """What a plan knows of where a run will be.

    Attributes:
        memory: bytes a process may use; base: bytes it uses before there is a model.
        on_gpu: whether `memory` is a GPU's, so that copies for the disk lie elsewhere.
        rates: None where only a measurement could tell.
        assumptions: where the figures come from.
    """

    name: str
    memory: float
    base: float
    on_gpu: bool
    rates: Rates | None
    assumptions: tuple[str, ...]


# peak FP32 and BF16 matrix FLOP/s, memory bytes/s and bytes, network bytes/s of a node: data sheets
# of MI250X (per die), A100 80 GB SXM and H100 SXM; nodes of LUMI-G (4 x 200 Gb/s), and of 4 and 8
# such GPUs with 200 and 400 Gb/s each
PEAKS = {
    "lumi-g": (47.9e12, 191.5e12, 1.6e12, 64 * GB, 100 * GB, 50 * GB),
    "a100": (19.5e12, 312e12, 2.0e12, 80 * GB, 100 * GB, 300 * GB),
    "h100": (67e12, 989e12, 3.35e12, 80 * GB, 400 * GB, 450 * GB),
}
PRESETS = tuple(PEAKS)
_MATRIX, _ATTENTION, _MEMORY, _WIRE = 0.4, 0.25, 0.6, 0.6  # shares of the peaks that we assume
_GPU_BASE = 2 * GB


def machine_of(name: str | None, config: Config) -> Machine:
    """The preset of that name; this machine where there is none."""
    return this_machine(config) if name is None else preset(name, config.train.precision)


def preset(name: str, precision: str) -> Machine:
    """A known machine: data-sheet peaks times assumed shares of them."""
    fp32, bf16, bandwidth, memory, network, link = PEAKS[name]
    peak = bf16 if precision == "bf16" else fp32
    rates = Rates(
        flops={
            "matrix products": _MATRIX * peak,
            "attention": _ATTENTION * peak,
            "own operators": _ATTENTION / 2 * peak,  # causal halves, for which no kernel is faster
        },
        bandwidth=_MEMORY * bandwidth,
        link=_WIRE * link,
        link_latency=10e-6,
        network=_WIRE * network,
        network_latency=25e-6,
    )
    assumptions = (
        f"{name}: peaks of the data sheet ({peak / 1e12:.0f} TFLOP/s {precision}, "
        f"{bandwidth / 1e12:.2f} TB/s, {network / GB:.0f} GB/s of network a node), of which "
        f"{_MATRIX:.0%} in matrix products, {_ATTENTION:.0%} in attention (half of it with "
        f"terrain), {_MEMORY:.0%} of the memory's and {_WIRE:.0%} of the wires' "
        "bandwidth are assumed, not measured",
        "latencies of 10 us in a node and 25 us between nodes and 2 GB of a process before the "
        "model (context, kernels, communicator) are assumed",
        "tensors are counted as on a CPU, where dropout keeps four bytes of noise for each value; "
        "a GPU keeps one",
        "the all-reduce by the alpha-beta model, the faster of ring and tree, behind the last "
        "micro-batch's backward but for its last bucket of 25 MiB",
    )
    return Machine(name, memory, _GPU_BASE, True, rates, assumptions)


def this_machine(config: Config) -> Machine:
    """This machine, without rates.

    On a CPU, call it before anything large is made, which would count as base.
    """
    if torch.cuda.is_available():
        _, total = torch.cuda.mem_get_info()
        text = "2 GB of a process before the model (context, kernels, communicator) are assumed"
        return Machine("this machine", total, _GPU_BASE, True, None, (text,))
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # every rank of a run imports this file for its network, and needs no memory tracker
    from aqnet.plan.rehearsal import base_of_a_process

    base = base_of_a_process(config)
    text = (
        "what a process holds beside its tensors was measured with the smallest model of this "
        "kind; holes that the C library leaves between tensors below 1 MiB are not planned"
    )
    return Machine("this machine", total, base, False, None, (text,))


def all_reduce_seconds(size: float, nodes: int, per_node: int, rates: Rates) -> float:
    """Time to add `size` bytes over all processes: the faster of ring and tree.

    The alpha-beta model (Thakur et al. 2005; trees as in NCCL 2.4): a ring of n takes 2 (n - 1)
    latencies and moves 2 (n - 1) / n of the bytes through the slowest link; a tree takes two
    latencies for each of its levels, one level after the other inside a node, and moves all bytes
    up and down.
    """
    n = nodes * per_node
    if n == 1:
        return 0.0
    slowest = rates.link if nodes == 1 else min(rates.link, rates.network)
    latency = rates.link_latency if nodes == 1 else rates.network_latency
    ring = 2 * (n - 1) * latency + 2 * (n - 1) / n * size / slowest
    levels = (per_node - 1) * rates.link_latency + math.ceil(math.log2(nodes)) * latency
    tree = 2 * levels + 2 * size / slowest
    return min(ring, tree)
