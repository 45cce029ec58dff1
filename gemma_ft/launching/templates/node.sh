# How the run stands, by its status.json: running, interrupted, killed, failed or finished; none where it has
# not begun. The exit code does not tell: torchrun ends with 1 whatever happened.
run_state() {
  "$python" -m gemma_ft.launching.standing "$run"
}

# Let no crash start again for ever: the fourth start that finds no newer checkpoint does not begin.
count_start() { # $1: what stays the same when this job starts again
  local mark
  mark="$1 $(find "$run/checkpoints" -maxdepth 1 -name 'step-*[0-9]' 2>/dev/null | sort | tail -n 1)"
  mkdir -p "$(dirname "$run")" && echo "$mark" >>"$run.starts" || return 1
  if [ "$(grep -cxF -- "$mark" "$run.starts")" -gt 3 ]; then
    echo "three starts have left no newer checkpoint in $run: giving up." \
      "Its status.json says why; trainer.save_steps says how often one is saved." >&2
    return 1
  fi
}

# Become the processes of one node, one a GPU; those of all nodes meet at the first node's port.
train_on_node() { # $1: this node's number from 0, $2: the first node, $3: its port, $4: a host to look towards
  local interface
  if [ "$nodes" -gt 1 ] && { [ -z "$NCCL_SOCKET_IFNAME" ] || [ -z "$GLOO_SOCKET_IFNAME" ]; }; then
    interface=$("$python" -m gemma_ft.launching.interface "$4") || exit 1
    export NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-=$interface}" # "=": this name, not what begins with it
    export GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-$interface}"
  fi
  export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="$stop_seconds" # then kill -9: a step and a checkpoint must fit in
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"        # alike at every start: it moves the last bit of sums
  exec "$python" -m torch.distributed.run --nnodes="$nodes" --nproc-per-node="$gpus" --node-rank="$1" \
    --master-addr="$2" --master-port="$3" --rdzv-conf=timeout=1800 --max-restarts=0 \
    -m gemma_ft "${words[@]}"
}
