#!/usr/bin/env bash
# Checks a training job before it is queued, and queues it unless told --dry-run:
#   CONFIG=... RUN_DIR=... slurm/submit.sh [--dry-run] [OPTION...] SCRIPT [key=value...]
# from the repository's root.
#   CONFIG, RUN_DIR  the config file and the run directory
#   SITE, NPROC      a file of slurm/site/ and the processes per node, both optional (see SCRIPT)
#   OPTION           of sbatch, written --name=value, such as --nodes=4
#   SCRIPT           slurm/train.sbatch or slurm/lumi.sbatch
#   key=value        for train.py
# Exit status 2, and nothing queued, where something would keep the job from training.
set -euo pipefail
if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then
  sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
  exit 0
fi
dry_run=
if [ "${1:-}" = --dry-run ]; then
  dry_run=yes
  shift
fi
options=()
while [[ ${1:-} == -* ]]; do
  options+=("$1")
  shift
done
script=${1:?give a batch script, such as slurm/train.sbatch}
shift
: "${CONFIG:?set CONFIG to a config file}" "${RUN_DIR:?set RUN_DIR to the run directory}"
source slurm/common.sh
if [ "$(basename "$script")" = lumi.sbatch ]; then SITE=${SITE:-slurm/site/lumi.sh}; fi
if [ -n "${SITE:-}" ] && [ ! -r "$SITE" ]; then
  echo "PROBLEM  $SITE: no such site file"
  exit 2
fi
(
  read_site
  ${on_node[@]+"${on_node[@]}"} python -m slurm.check --config "$CONFIG" --script "$script" \
    --preset "$preset" ${NPROC:+--nproc="$NPROC"} ${options[@]+"${options[@]/#/--option=}"} \
    run_dir="$RUN_DIR" "$@"
)
if [ -n "$dry_run" ]; then exit 0; fi
exec sbatch ${options[@]+"${options[@]}"} "$script" "$@"
