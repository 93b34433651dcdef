# shellcheck shell=bash disable=SC2034
# LUMI-G (AMD MI250X, Slingshot); sourced by the batch scripts where SITE names it.

preset=lumi-g

# A container of the LUMI AI factory: ROCm, torch 2.10, and the aws-ofi-rccl plugin, without which
# RCCL falls back to TCP over Slingshot. The module sets what it needs to see of the system.
if ! command -v module >/dev/null; then
  echo "PROBLEM  slurm/site/lumi.sh: there is no command 'module' here; this file is for LUMI's nodes" >&2
  exit 2
fi
module purge
module use /appl/local/laifs/modules
module load lumi-aif-singularity-bindings
container=lumi-multitorch-u24r70f21m50t210-20260415_130625
container=/appl/local/laifs/containers/$container/${container/multitorch/multitorch-full}.sif

# aqnet's other packages, one file on Lustre in place of thousands (docs/lumi.md makes it).
# Singularity: put before the container's own PATH
AQNET_PACKAGES=${AQNET_PACKAGES:-aqnet.sqsh}
export SINGULARITYENV_PREPEND_PATH=/user-software/bin

# MIOpen: its compiled kernels go to a folder of the node's memory. The default is below $HOME on
# Lustre, where the file locks of hundreds of processes fail. Made on each node, hence here.
# shellcheck disable=SC2016
on_node=(
  bash -c 'MIOPEN_USER_DB_PATH=$(mktemp -d)
    export MIOPEN_USER_DB_PATH MIOPEN_CUSTOM_CACHE_DIR=$MIOPEN_USER_DB_PATH
    exec "$@"' bash
  singularity exec -B "$AQNET_PACKAGES:/user-software:image-src=/" "$container"
)

# RCCL: the processes find each other over Slingshot (hsn0 to hsn3), not over the management network.
# NCCL_IB_* is for InfiniBand, and NCCL_NET_GDR_LEVEL hangs multi-node runs here: neither is set.
export NCCL_SOCKET_IFNAME=hsn

# libfabric: how it notices memory that was freed; the default monitor can hang with RCCL.
export FI_MR_CACHE_MONITOR=userfaultfd

source slurm/site/flight_recorder.sh

# Each process on the cores next to its GCD: 7 of the 56, apart from those that LUMI reserves
torchrun_options=(--numa-binding=exclusive)
