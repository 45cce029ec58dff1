#!/bin/bash
%%{header}
#
#SBATCH --job-name=%%{job_name}
#SBATCH --nodes=%%{nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=%%{gpus}
%%{options}
#SBATCH --output=%x-%j.log
# One log for all starts:
#SBATCH --open-mode=append
# A node that fails, or a preemption, puts the job back into the queue:
#SBATCH --requeue
# Before the time limit the steps (not this script) are told to stop, early enough for a checkpoint. Slurm
# may send this a minute early. At the limit itself KillWait (30 s) is all there is, and for a preemption the
# partition's GraceTime: ask for %%{stop_seconds} s where the work since the last checkpoint must not be lost.
#SBATCH --signal=TERM@%%{lead_seconds}

# Both must be there on every node; relative paths begin where sbatch is called.
python=%%{python}
run=%%{run_dir}
nodes=%%{nodes} gpus=%%{gpus} stop_seconds=%%{stop_seconds}
words=(
%%{words}
)

%%{node}
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=${hosts[0]} last=${hosts[-1]}
port=$((15000 + SLURM_JOB_ID % 15000)) # of this job alone, below what systems hand out

count_start "$SLURM_JOB_ID" || exit 1
# One task a node, which sees all its processors. One that fails ends the others; one that is done does not.
# shellcheck disable=SC2016 # the last two lines are for the nodes
srun --ntasks="$nodes" --ntasks-per-node=1 --cpu-bind=none --kill-on-bad-exit=1 --wait=0 bash -c "
$(declare -p python run nodes gpus stop_seconds words first last port)
$(declare -f train_on_node)"'
[ "$SLURM_NODEID" = 0 ] && towards=$last || towards=$first
train_on_node "$SLURM_NODEID" "$first" "$port" "$towards"'
code=$?

[ "$code" -ne 0 ] || exit 0
state=$(run_state)
case "$state" in
  interrupted | killed | running) # stopped after a checkpoint; or lost a process, or all
    echo "the run is $state: back into the queue"
    scontrol requeue "$SLURM_JOB_ID" || exit "$code"
    ;;
  *) # failed, or refused before it began: the same again would end the same
    echo "the run is $state: see above, and $run/status.json" >&2
    exit "$code"
    ;;
esac
