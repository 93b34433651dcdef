"""What a machine can do, stated for known ones and measured for this one; what all-reduce costs."""

from __future__ import annotations

import math
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from aqnet.config import Model
from aqnet.distributed.launch import peak_bytes

GB = 1e9


@dataclass(frozen=True)
class Machine:
    """Rates of one process (a GPU, or all threads of a CPU process), per second.

    Attributes:
        linear, attention, terrain: FLOP of matrix products and of attention without and with
            terrain (two causal halves), forward and backward.
        elementwise: bytes that all other operations move; aggregation: those among variables.
        overhead: seconds of a block, forward and backward, that do not shrink with its size.
        memory: bytes a process may use; base: bytes it uses before there is a model.
        holes: what its allocator loses between activations, as a share of them.
        link, link_latency: bytes per second between two processes of a node, and seconds.
        network, network_latency: bytes per second into a node from the others, and seconds.
        disk: bytes per second one process writes.
        said: where the figures come from.
    """

    name: str
    linear: float
    attention: float
    terrain: float
    elementwise: float
    aggregation: float
    overhead: float
    memory: float
    base: float
    holes: float
    link: float
    link_latency: float
    network: float
    network_latency: float
    disk: float
    said: tuple[str, ...]


# peak FP32 and BF16 matrix FLOP/s, memory bytes/s and bytes, network bytes/s of a node: data sheets
# of MI250X (per die), A100 80 GB SXM and H100 SXM; nodes of LUMI-G (4 x 200 Gb/s), and of 4 and 8
# such GPUs with 200 and 400 Gb/s each
_PEAKS = {
    "lumi-g": (47.9e12, 191.5e12, 1.6e12, 64 * GB, 100 * GB, 50 * GB),
    "a100": (19.5e12, 312e12, 2.0e12, 80 * GB, 100 * GB, 300 * GB),
    "h100": (67e12, 989e12, 3.35e12, 80 * GB, 400 * GB, 450 * GB),
}
PRESETS = ("local", *_PEAKS)
_LINEAR, _ATTENTION, _MEMORY, _WIRE = 0.4, 0.25, 0.6, 0.6  # shares of the peaks that we assume
# glibc does not put an aligned block where one of the same size was freed: measured beside the sum
# of all tensors alive, 0.40 with 2,961 tokens of the original's width and 0.45 with 8,192
_HEAP_HOLES = 0.4


def preset(name: str, precision: str) -> Machine:
    """A known machine: data-sheet peaks times assumed shares of them."""
    fp32, bf16, bandwidth, memory, network, link = _PEAKS[name]
    peak = bf16 if precision == "bf16" else fp32
    return Machine(
        name,
        linear=_LINEAR * peak,
        attention=_ATTENTION * peak,
        terrain=_ATTENTION / 2 * fp32,  # there is no faster kernel than FP32's for it
        elementwise=_MEMORY * bandwidth,
        aggregation=_MEMORY * bandwidth,
        overhead=0.0,  # kernels are launched ahead
        memory=memory,
        base=2 * GB,
        holes=0.0,
        link=_WIRE * link,
        link_latency=10e-6,
        network=_WIRE * network,
        network_latency=25e-6,
        disk=1 * GB,
        said=(
            f"{name}: peaks of the data sheet ({peak / 1e12:.0f} TFLOP/s {precision}, "
            f"{bandwidth / 1e12:.2f} TB/s, {network / GB:.0f} GB/s of network a node), of which "
            f"{_LINEAR:.0%} in matrix products, {_ATTENTION:.0%} in attention (half of it with "
            f"terrain, always FP32), {_MEMORY:.0%} of the memory's and {_WIRE:.0%} of the wires' "
            "bandwidth are assumed, not measured",
            "latencies of 10 us in a node and 25 us between nodes, 2 GB of a process before the "
            "model (context, kernels, communicator), nothing lost between activations and 1 GB/s "
            "to the file system are assumed",
        ),
    )


def this_machine(model: Model, variables: int, tokens: int, items: int) -> Machine:
    """Measure this CPU at the shapes of a model, in about ten seconds.

    Args:
        variables: inputs; tokens: of one sequence; items: sequences in a micro-batch.
    """
    dim, hidden = model.embed_dim, int(model.embed_dim * model.mlp_ratio)
    length = min(tokens, model.window) if model.attention == "window" else tokens
    rows, width, dropout = min(tokens * items, 16384), dim // model.num_heads, model.drop_rate > 0
    tiny = _linear_seconds(8, dim, hidden) + _elementwise_seconds(8, dim, hidden, dropout)
    tiny += _attention_seconds(1, model.num_heads, 8, width, terrain=False)
    base = float(peak_bytes())  # with all that torch sets up at the first backward
    linear = _linear_seconds(rows, dim, hidden)
    plain = _attention_seconds(items, model.num_heads, length, width, terrain=False)
    terrain = _attention_seconds(items, model.num_heads, length, width, terrain=True)
    elementwise = _elementwise_seconds(rows, dim, hidden, dropout)
    aggregation = _aggregation_seconds(rows, variables, model)
    link, latency = _loopback()
    of_attention = 3.5 * attention_flops(items * length, length, dim)
    return Machine(
        "local",
        linear=3 * linear_flops(rows, dim, hidden) / linear,
        attention=of_attention / plain,
        terrain=of_attention / width * terrain_width(width) / terrain,
        elementwise=rows * elementwise_bytes(dim, hidden, dropout) / elementwise,
        aggregation=rows * aggregation_bytes(model, variables) / aggregation,
        overhead=tiny,
        memory=float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        base=base,
        holes=_HEAP_HOLES,
        link=link,
        link_latency=latency,
        network=link,
        network_latency=latency,
        disk=_disk(),
        said=(
            f"this machine, measured now with {torch.get_num_threads()} threads at the model's "
            "shapes: linear layers, attention, aggregation and element-wise layers forward and "
            "backward, TCP over loopback, a file written and synced",
            f"the C library's heap loses {_HEAP_HOLES:.0%} of the activations between them",
        ),
    )


def terrain_width(width: int) -> int:
    """Width of a head of terrain attention: two numbers more, padded to a multiple of 8."""
    return -(-(width + 2) // 8) * 8


def linear_flops(rows: int, dim: int, hidden: int) -> float:
    """Forward FLOP of a block's linear layers for `rows` tokens."""
    return 2.0 * rows * (4 * dim * dim + 2 * dim * hidden)


def attention_flops(rows: int, length: int, dim: int) -> float:
    """Forward FLOP of attention of `rows` tokens to `length` each."""
    return 4.0 * rows * length * dim


def elementwise_bytes(dim: int, hidden: int, dropout: bool) -> float:
    """Bytes moved per token by a block's norms, GELU, sums, copies and dropout, both ways."""
    forward = 20 * dim + 2 * hidden + (4 * dim + 2 * hidden if dropout else 0)
    return 3.0 * 4 * forward


def aggregation_bytes(model: Model, variables: int) -> float:
    """Bytes moved per token by scores, softmax and weighted pixels of heads and variables."""
    return 12 * 4.0 * model.num_heads * variables * (model.patch**2 + 1)


def all_reduce_seconds(size: float, nodes: int, per_node: int, machine: Machine) -> float:
    """Time to add `size` bytes over all processes: the faster of ring and tree.

    The alpha-beta model (Thakur et al. 2005; trees as in NCCL 2.4): a ring of n takes 2 (n - 1)
    latencies and moves 2 (n - 1) / n of the bytes through the slowest link; a tree takes two
    latencies for each of its levels, one level after the other inside a node, and moves all bytes
    up and down.
    """
    n = nodes * per_node
    if n == 1:
        return 0.0
    slowest = machine.link if nodes == 1 else min(machine.link, machine.network)
    latency = machine.link_latency if nodes == 1 else machine.network_latency
    ring = 2 * (n - 1) * latency + 2 * (n - 1) / n * size / slowest
    levels = (per_node - 1) * machine.link_latency + math.ceil(math.log2(nodes)) * latency
    tree = 2 * levels + 2 * size / slowest
    return min(ring, tree)


def _timed(run: Callable[[], object]) -> float:
    """Seconds of a call: the middle of at least three, after one to warm up.

    In a training step other layers have used the caches since: here a write of 16 MB does.
    """
    run()
    seconds: list[float] = []
    others = torch.empty(2**22)
    while len(seconds) < 3 or (sum(seconds) < 1.0 and len(seconds) < 30):
        others.fill_(len(seconds))
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[len(seconds) // 2]


def _linear_seconds(rows: int, dim: int, hidden: int) -> float:
    shapes = ((3 * dim, dim), (dim, dim), (hidden, dim), (dim, hidden))
    weights = [torch.randn(shape, requires_grad=True) for shape in shapes]
    inputs = [torch.randn(rows, shape[1], requires_grad=True) for shape in shapes]

    def run() -> None:
        for x, weight in zip(inputs, weights, strict=True):
            out = F.linear(x, weight)
            out.backward(out.detach())

    return _timed(run)


def _attention_seconds(items: int, heads: int, length: int, width: int, terrain: bool) -> float:
    """Attention as it is, or as two causal halves of widened rows, one of them turned around."""
    q, k, v = (torch.randn(items, heads, length, width, requires_grad=True) for _ in range(3))
    more = terrain_width(width) - width

    def run() -> None:
        if terrain:
            q_, k_, v_ = (F.pad(x, (0, more)) for x in (q, k, v))
            out = F.scaled_dot_product_attention(q_, k_, v_, is_causal=True)
            q_, k_, v_ = (x.flip(2) for x in (q_, k_, v_))
            upper = F.scaled_dot_product_attention(q_, k_, v_, is_causal=True)
            out = (out * 0.5 + upper.flip(2) * 0.5)[..., :width].contiguous()
        else:
            out = F.scaled_dot_product_attention(q, k, v)
        out.backward(out.detach())

    return _timed(run)


def _elementwise_seconds(rows: int, dim: int, hidden: int, dropout: bool) -> float:
    x = torch.randn(rows, dim, requires_grad=True)
    wide = torch.randn(rows, hidden, requires_grad=True)
    scale = torch.ones(dim, requires_grad=True)

    def rest(value: Tensor) -> Tensor:
        return F.dropout(value, 0.1) if dropout else value

    def run() -> None:
        mixed = F.layer_norm(x, (dim,), scale).unflatten(1, (4, -1)).transpose(0, 1).contiguous()
        out = x + rest(mixed.transpose(0, 1).flatten(1))
        out = out + rest(F.layer_norm(out, (dim,), scale))
        activated = rest(F.gelu(wide))
        torch.autograd.backward([out, activated], [out.detach(), activated.detach()])

    return _timed(run)


def _aggregation_seconds(rows: int, variables: int, model: Model) -> float:
    """Folded aggregation of variables, without its linear layer."""
    heads, numbers = model.num_heads, model.patch**2
    pixels = torch.randn(rows, variables, numbers)
    score_of = torch.randn(heads, variables, numbers, requires_grad=True)
    inputs = variables * (numbers + 1)
    value_of = torch.randn(heads, inputs, model.embed_dim // heads, requires_grad=True)

    def run() -> None:
        missing = pixels.isnan().all(-1).unsqueeze(1)
        score = torch.einsum("lvn,avn->lav", pixels, score_of).masked_fill(missing, -math.inf)
        weight = score.softmax(-1).unsqueeze(-1)
        weighted = torch.cat([weight * pixels.unsqueeze(1), weight], -1)
        out = torch.einsum("lam,amd->lad", weighted.flatten(2), value_of)
        out.backward(out.detach())

    return _timed(run)


def _loopback() -> tuple[float, float]:
    """Bytes per second and seconds of latency of TCP between two threads of this process."""
    server = socket.create_server(("127.0.0.1", 0))
    size, pings = 64 * 2**20, 200

    def answer() -> None:
        connection, _ = server.accept()
        with connection:
            for _ in range(pings):
                connection.sendall(connection.recv(1))
            left = size
            while left:
                left -= len(connection.recv(min(left, 2**20)))
            connection.sendall(b"x")

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    with server, socket.create_connection(server.getsockname()) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        start = time.perf_counter()
        for _ in range(pings):
            client.sendall(b"x")
            client.recv(1)
        middle = time.perf_counter()
        client.sendall(bytes(size))
        client.recv(1)
        end = time.perf_counter()
    thread.join()
    return size / (end - middle), (middle - start) / pings / 2


def _disk() -> float:
    block = bytes(32 * 2**20)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        start = time.perf_counter()
        with (Path(folder) / "probe").open("wb") as file:
            for _ in range(4):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        return 4 * len(block) / (time.perf_counter() - start)
