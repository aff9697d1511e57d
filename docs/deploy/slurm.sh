#!/usr/bin/env bash
# Runs a study on a Ray cluster that lasts as long as this job; slurm.md says how.
#   sbatch docs/deploy/slurm.sh STUDY.yaml /shared/runs [OPTION OF `sftsearch run`]...
#SBATCH --job-name=sftsearch
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --signal=B:INT@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
set -m # or bash would have the driver ignore SIGINT
study=$1 runs=$2
shift 2

private=$(mktemp -d "$HOME/.sftsearch-$SLURM_JOB_ID-XXXXXX") # mode 0700
sruns=() told='' again=''

finish() {
  kill "${sruns[@]}" 2> /dev/null || true # srun passes it on to each node
  wait || true
  rm -rf "$private"
  if [ -n "$again" ]; then scontrol requeue "$SLURM_JOB_ID"; fi
}
trap finish EXIT

unset RAY_AUTH_TOKEN # it would count more than the file
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$private/token RAY_USAGE_STATS_ENABLED=0
(umask 077 && python -c 'import secrets; print(secrets.token_hex(32))' > "$RAY_AUTH_TOKEN_PATH")

# This script runs on the first node. Jobs that share it have different ports.
port=$((20000 + SLURM_JOB_ID % 10000))
address=$(python -c 'import ray.util; print(ray.util.get_node_ip_address())'):$port
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")

# One node of Ray, until SIGTERM. Whatever Ray writes is open to all who can enter the folder.
node='
  folder=$(mktemp -d /tmp/sftsearch-ray-XXXXXX) || exit
  trap "rm -rf $folder" EXIT
  ray start --block --temp-dir="$folder" "$@" &
  trap "kill $!" TERM
  wait $!
  wait $!
'
step=(bash -c "$node" ray-node --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}")

# join NUMBER NAME waits until so many nodes are there, for five minutes at most.
join() {
  timeout 300 python - "$address" "$1" << 'PYTHON' || { echo "$2 did not join Ray at $address." >&2; exit 1; }
import socket
import sys
import time

import ray

address, number = sys.argv[1], int(sys.argv[2])
host, _, port = address.rpartition(":")
while socket.socket().connect_ex((host, int(port))):
    time.sleep(1)
ray.init(address=address, logging_level="ERROR", log_to_driver=False)
while sum(node["Alive"] for node in ray.nodes()) < number:
    time.sleep(1)
PYTHON
}

srun --nodes=1 --ntasks=1 --nodelist="${hosts[0]}" --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  "${step[@]}" --head --port="$port" --include-dashboard=false &
sruns+=($!)
join 1 'The first node'
others=$((${#hosts[@]} - 1))
if [ "$others" -gt 0 ]; then
  srun --nodes="$others" --ntasks="$others" --exclude="${hosts[0]}" \
    --cpus-per-task="$SLURM_CPUS_PER_TASK" "${step[@]}" --address="$address" &
  sruns+=($!)
  join "${#hosts[@]}" 'Some node'
fi

sftsearch run "$study" --resume --address "$address" --runs "$runs" "$@" &
driver=$!
trap 'told=yes; kill -INT "$driver"' INT
code=0
wait "$driver" || code=$?
if [ -n "$told" ]; then # a minute for the trials that run, then they are left for the next time
  timeout 60 tail --pid="$driver" -f /dev/null || kill -TERM "$driver"
  code=0
  wait "$driver" || code=$?
  case $code in 130 | 143) again=yes ;; esac
fi
exit "$code"
