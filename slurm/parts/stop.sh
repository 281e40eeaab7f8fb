# Slurm's signal before the end of the time, or before a preemption.
child=
again=no
stop() {
  [ "$again" = no ] || return
  again=yes
  echo "$(date '+%F %T') Slurm ends this job soon: a checkpoint, then the run goes on in its successor"
  [ -z "$child" ] || kill -TERM "$child"
}
trap stop USR2
