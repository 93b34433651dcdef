# shellcheck shell=bash
# What the batch scripts share; sourced by them. Functions only.

# Read the site file, if SITE names one. It may load modules, export variables, activate an
# environment, and set: `on_node`, what each node runs before python (a container);
# `torchrun_options`; and `preset`, the machine that submit.sh plans with.
read_site() {
  on_node=()
  torchrun_options=()
  # shellcheck disable=SC2034
  preset=local
  set +u # modules and environments of sites read variables that are not set
  # shellcheck source=/dev/null
  if [ -n "${SITE:-}" ]; then source "$SITE"; fi
  set -u
  # Since Slurm 22.05 srun gives a step one CPU, whatever the job has, unless it is told again
  if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi
}

# Where the processes meet: MASTER_ADDR (a site file may set it) and MASTER_PORT.
find_meeting_point() {
  local head
  head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p) # head would break the pipe
  if [ -z "${MASTER_ADDR:-}" ]; then
    if getent hosts "$head" >/dev/null; then
      MASTER_ADDR=$head
    else
      MASTER_ADDR=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address)
      MASTER_ADDR=${MASTER_ADDR%% *}
    fi
  fi
  # Another one after each restart: the port of the attempt before may still be taken
  MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000 + ${SLURM_RESTART_COUNT:-0} % 10))
}

# torchrun on every node of the job: on_all_nodes LOGS SCRIPT [ARGUMENT...]
# What node number K, called NAME, prints goes to LOGS/JOB-RESTART-nodeK-NAME.log.
on_all_nodes() {
  local logs=$1 attempt=$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0} gpus=${SLURM_GPUS_ON_NODE:-0}
  shift
  mkdir -p "$logs"
  # srun: where a node's torchrun died, the others must not hang until the collective's time-out, but
  # rank 0 may need minutes after the others to write its last checkpoint or report, and when the job
  # is cancelled every torchrun ends with an error while that goes on.
  # rdzv_conf: nodes whose imports are faster wait for the first node's store, 60 s by default.
  srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=600 \
    --output="$logs/$attempt-node%n-%N.log" \
    ${on_node[@]+"${on_node[@]}"} python -u -m torch.distributed.run \
    ${torchrun_options[@]+"${torchrun_options[@]}"} \
    --nnodes="$SLURM_JOB_NUM_NODES" \
    --nproc_per_node="${NPROC:-$((gpus > 0 ? gpus : 1))}" \
    --rdzv_id="$attempt" --rdzv_backend=c10d --rdzv_endpoint="$MASTER_ADDR:$MASTER_PORT" \
    --rdzv_conf=read_timeout=600 "$@"
}

# For those who look into the job's own output first: errors that any process said, and the end of the
# longest log (rank 0's, mostly the first node's) without torchrun's own traceback.
show_end_of_log() {
  local logs=$1 attempt=$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0} log
  log=$(find "$logs" -name "$attempt-node*.log" -printf '%s %p\n' | sort -rn | sed -n '1s/[0-9]* //p')
  if [ -n "$log" ]; then
    echo "--- the end of $log:"
    sed '/torch\/distributed\/elastic\/multiprocessing\/api.py/,$d' "$log" | tail -n 20
    find "$logs" -name "$attempt-node*.log" -exec grep -h '^error: ' {} + | sort -u | head -n 5 || true
  fi
}
