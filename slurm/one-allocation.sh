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
@PROLOG@
dd2=@DD2@
run=@RUN@
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd,)
@CANCELLED@

again=no
stop() {
  [ "$again" = no ] || return
  again=yes
  echo "$(date '+%F %T') Slurm ends this job soon: a checkpoint, then the run goes on in its successor"
  kill -TERM "$child"
}
trap stop USR2

echo "$(date '+%F %T') job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $nodes"
"$dd2" run "$run/config.yaml" --run "$run" --resume --nodes "$nodes" @RUN_OPTIONS@ &
child=$!
# A signal that is trapped interrupts the wait.
while wait "$child"; code=$?; [ "$code" -gt 128 ] && kill -0 "$child" 2>/dev/null; do :; done
echo "$(date '+%F %T') dd2 run ended with exit code $code"

# 6: stopped after a checkpoint. Anything else is finished, or wants a look first.
if [ "$code" -eq 6 ] && [ "$again" = yes ] && [ ! -e "$run/slurm/cancelled" ]; then
  scontrol requeue "$SLURM_JOB_ID" && sleep 60
fi
exit "$code"
