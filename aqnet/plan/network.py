"""The network between nodes as a run finds it, beside what the plan assumes."""

from __future__ import annotations

import time

import torch

from aqnet import distributed
from aqnet.plan import machine as machines

_PRESETS = {"MI250X": "lumi-g", "A100": "a100", "H100": "h100"}  # by a part of the GPU's name
_WORTH_A_WARNING = 1 / 3


def measured(model: torch.nn.Module, device: torch.device) -> str:
    """`report` of one all-reduce of the gradient's size; all processes must call."""
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    return report(
        all_reduce_seconds(size, device),
        size,
        distributed.num_nodes(),
        distributed.world_size() // distributed.num_nodes(),
        torch.cuda.get_device_name(device) if device.type == "cuda" else "CPUs",
    )


def all_reduce_seconds(num_bytes: int, device: torch.device) -> float:
    """Time to sum float32 tensors of this size over the processes [s], on rank 0 the longest.

    Of two sums the second: the first also opens connections. All must call.
    """
    values, elapsed = torch.zeros(num_bytes // 4, device=device), 0.0
    for _ in range(2):
        distributed.barrier()
        began = time.perf_counter()
        distributed.sum_(values)
        if device.type == "cuda":
            torch.cuda.synchronize()
        elapsed = time.perf_counter() - began
    everyone = distributed.gather_objects(elapsed)
    return elapsed if everyone is None else max(everyone)


def report(seconds: float, num_bytes: int, nodes: int, per_node: int, gpu: str) -> str:
    """What one all-reduce of the gradient's size says about the network; a warning if it is slow.

    A wrong plug-in or library on the path costs no error, only time: four nodes as slow as one.

    Args:
        seconds: that it took; per_node: processes; gpu: the name that the driver gives.
    """
    processes = nodes * per_node
    moved = 2 * (processes - 1) / processes * num_bytes / 1e9  # GB through each link of a ring
    message = (
        f"network: {num_bytes / 1e6:.3g} MB summed over {nodes} nodes in {seconds * 1e3:.3g} ms, "
        f"{moved / seconds:.3g} GB/s"
    )
    names = [preset for part, preset in _PRESETS.items() if part in gpu]
    if not names:
        return f"{message}; the plan has no figure for {gpu}"
    machine = machines.preset(names[0], "fp32")
    assert machine.rates is not None
    planned = machines.all_reduce_seconds(num_bytes, nodes, per_node, machine.rates)
    message += f"; the plan for {machine.name} assumes {moved / planned:.3g} GB/s"
    if planned / seconds > _WORTH_A_WARNING:
        return message
    return (
        f"warning: {message}, three times as much; see docs/troubleshooting.md, slow on many nodes"
    )
