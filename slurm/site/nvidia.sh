# shellcheck shell=bash disable=SC2034
# A cluster with NVIDIA GPUs and InfiniBand; sourced by the batch scripts where SITE names it.

# The Python environment. On a file system that is slow with many small files, give a container to
# `on_node` instead: on_node=(apptainer exec --nv /path/to/pytorch.sif)
# shellcheck source=/dev/null
source .venv/bin/activate

# NCCL: the processes find each other over the InfiniBand cards' IP addresses (ib0, ib1, ...), not
# over an Ethernet that compute nodes may not route. Data go over InfiniBand without being told.
export NCCL_SOCKET_IFNAME=ib

# torch (ProcessGroupNCCL): where a collective exceeds train.timeout_seconds, each rank writes its
# last 2,000 collectives, which `python -m torch.distributed.flight_recorder.fr_trace` compares.
export TORCH_NCCL_DUMP_ON_TIMEOUT=1
export TORCH_FR_BUFFER_SIZE=2000
# On the shared file system, because /tmp of a node is out of reach after the job
if [ -n "${RUN_DIR:-}" ]; then
  mkdir -p "$RUN_DIR/flight_recorder"
  export TORCH_FR_DUMP_TEMP_FILE=$RUN_DIR/flight_recorder/rank_
fi

# Each process on its share of the cores next to its GPU (needs numactl on the nodes)
torchrun_options=(--numa-binding=exclusive)
