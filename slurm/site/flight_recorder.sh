# shellcheck shell=bash
# Sourced by the site files of GPU clusters.
# torch's ProcessGroupNCCL: where a collective exceeds train.timeout_seconds, each rank writes down
# its last 2,000 collectives; `python -m torch.distributed.flight_recorder.fr_trace` compares them.
export TORCH_NCCL_DUMP_ON_TIMEOUT=1
export TORCH_FR_BUFFER_SIZE=2000
# On the shared file system, because a node's /tmp is out of reach after the job
if [ -n "${SLURM_JOB_ID:-}" ] && [ -n "${RUN_DIR:-}" ]; then
  mkdir -p "$RUN_DIR/flight_recorder"
  export TORCH_FR_DUMP_TEMP_FILE=$RUN_DIR/flight_recorder/rank_
fi
