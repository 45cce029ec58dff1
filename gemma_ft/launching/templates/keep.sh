# Run the node's processes, pass on a request to stop, and say by the exit code whether to start again.
keep_node() { # what train_on_node takes
  local child code asked=
  train_on_node "$@" &
  child=$!
  trap '[ -n "$asked" ] || kill -TERM "$child"; asked=yes' TERM
  wait "$child"
  code=$?
  while kill -0 "$child" 2>/dev/null; do # a signal ends a wait early
    wait "$child"
    code=$?
  done
  [ "$code" -ne 0 ] || return 0
  for _ in {1..30}; do # the first node may still be writing how it ended
    [ "$(run_state)" = running ] || break
    sleep 2
  done
  case "$(run_state)" in
    interrupted | killed | running) return 143 ;; # saved what it had, or lost a process: start again
    *) return 1 ;;                                # failed, or refused: the same again would end the same
  esac
}
