"""Everything that calls torch.distributed; all of it also works in one process without a group."""

from aqnet.distributed.collectives import (
    any_rank,
    at_step,
    barrier,
    broadcast_object,
    collective,
    exchange_seconds,
    explained,
    gather_objects,
    is_main,
    no_sync,
    on_main,
    rank,
    say,
    start,
    stop,
    sum_,
    world_size,
    wrap,
)
from aqnet.distributed.launch import by_first_process, is_first_process, num_nodes
