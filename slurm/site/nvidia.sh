# shellcheck shell=bash disable=SC2034
# A cluster with NVIDIA GPUs and InfiniBand; sourced by the batch scripts where SITE names it.

preset=h100 # or a100

# The Python environment. Where the file system is slow with many small files, or for more than a few
# nodes, run a container instead: on_node=(apptainer exec --nv /path/to/pytorch.sif)
# shellcheck source=/dev/null
source .venv/bin/activate

# NCCL: the processes find each other over the InfiniBand cards' IP addresses (ib0, ib1, ...), not
# over an Ethernet that compute nodes may not route. Data go over InfiniBand without being told.
export NCCL_SOCKET_IFNAME=ib

source slurm/site/flight_recorder.sh

# Each process on its share of the cores next to its GPU (needs numactl on the nodes)
torchrun_options=(--numa-binding=exclusive)
