#!/usr/bin/env bash
# Run a study on the nodes of a SLURM job: sbatch slurm.sh STUDY.yaml /shared/runs
#SBATCH --job-name=sftsearch
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --requeue
# Five minutes before the time limit no new trials start; the job is then requeued and resumes.
#SBATCH --signal=B:INT@300
set -euo pipefail
study=${1:?usage: sbatch slurm.sh STUDY.yaml RUNS}
runs=${2:?usage: sbatch slurm.sh STUDY.yaml RUNS}
port=${RAY_PORT:-$((20000 + SLURM_JOB_ID % 10000))}  # differs by job, because two jobs may share a node

# Anyone who can reach Ray's ports could run code: all nodes require a token, new for each job.
RAY_AUTH_TOKEN=$(python3 -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}'):$port
trap 'kill $(jobs -p) 2>/dev/null || true; wait || true' EXIT

srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap \
  ray start --head --node-ip-address="${address%:*}" --port="$port" --include-dashboard=false --block &
if ((${#nodes[@]} > 1)); then
  sleep 10
  srun --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) --exclude="$head" --overlap \
    ray start --address="$address" --block &
fi

python3 - "$address" "${#nodes[@]}" <<'PYTHON'
import sys
import time

import ray

for _ in range(60):
    try:
        ray.init(address=sys.argv[1], logging_level="ERROR")
        if sum(node["Alive"] for node in ray.nodes()) >= int(sys.argv[2]):
            sys.exit(0)
        ray.shutdown()
    except ConnectionError:
        pass
    time.sleep(5)
sys.exit("Not all nodes joined Ray within five minutes.")
PYTHON

sftsearch run "$study" --runs "$runs" --resume --address "$address" &
driver=$!
timed_out=0
trap 'timed_out=1; kill -INT $driver' INT
trap 'kill -TERM $driver' TERM
code=0
while kill -0 $driver 2>/dev/null; do wait $driver && code=0 || code=$?; done
if ((timed_out && code == 130)); then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
