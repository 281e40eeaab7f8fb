#!/bin/bash
# DD2 run @NAME@: one job for all nodes. The coordinator works on the first node, an agent on each.
# Written by `dd2 submit`. To go on with the run after the job has ended: sbatch @SCRIPT@
#SBATCH --job-name=@JOB_NAME@
#SBATCH --output=@RUN@/logs/slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=@NODES@
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
# A node that is lost takes its own workers along, not the job.
#SBATCH --no-kill
# Before the time limit: a checkpoint, then the job queues again.
#SBATCH --requeue
#SBATCH --signal=B:USR2@@GRACE@
@SBATCH@

child=
again=no
stop() {
  [ "$again" = no ] || return
  again=yes
  echo "$(date '+%F %T') Slurm ends this job soon: a checkpoint, then the run goes on in its successor"
  [ -z "$child" ] || kill -TERM "$child"
}
trap stop USR2

@PROLOG@
dd2=@DD2@
run=@RUN@
newest() { ls "$run/checkpoints" 2>/dev/null | tail -n 1; }
before=$(newest)
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd,)
@CANCELLED@

echo "$(date '+%F %T') job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $nodes"
"$dd2" run "$run/config.yaml" --run "$run" --resume --nodes "$nodes" @RUN_OPTIONS@ &
child=$!
[ "$again" = no ] || { sleep 2; kill -TERM "$child"; }
# A signal that is trapped interrupts the wait; the last one tells what the child ended with.
while wait "$child"; [ $? -gt 128 ] && kill -0 "$child" 2>/dev/null; do :; done
wait "$child"; code=$?
echo "$(date '+%F %T') dd2 run ended with exit code $code"

# 6: stopped after a checkpoint. Anything else is finished, or wants a look first.
if [ "$code" -eq 6 ] && [ "$again" = yes ] && [ ! -e "$run/slurm/cancelled" ]; then
  # Not for ever, where its time is too short for anything.
  if [ "$SECONDS" -lt 600 ] && [ "$before" = "$(newest)" ]; then
    echo "job $SLURM_JOB_ID ended before there was a new checkpoint" >> "$run/slurm/futile"
  else
    rm -f "$run/slurm/futile"
  fi
  if [ "$(cat "$run/slurm/futile" 2>/dev/null | wc -l)" -ge 3 ]; then
    echo "three times in a row without a new checkpoint: ask for more with --time, or less with --grace"
    rm -f "$run/slurm/futile"
    exit "$code"
  fi
  # Its controller may be away.
  until scontrol requeue "$SLURM_JOB_ID"; do sleep 5; done
  sleep 60
fi
exit "$code"
