# SIGUSR2: Slurm's signal before the end of the time. SIGUSR1: a step of this job saw that it is preempted.
child=
again=no
stop() {
  [ "$again" = no ] || return
  again=yes
  echo "$1" > "$run/slurm/ended-by"
  echo "$(date '+%F %T') Slurm ends this job soon ($1): a checkpoint, then the run goes on in its successor"
  [ -z "$child" ] || kill -TERM "$child"
}
trap 'stop time' USR2
trap 'stop preemption' USR1
