#!/bin/bash
# DD2 run @NAME@: one of its nodes. It joins the run, and waits for its coordinator where that is away.
# Written by `dd2 submit`; the coordinator's job submits it, again when one has ended.
#SBATCH --job-name=@JOB_NAME@-node
#SBATCH --output=@RUN@/logs/slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
# Another job takes the place of one that was lost or preempted.
#SBATCH --no-requeue
#SBATCH --signal=B:USR2@@GRACE@
@SBATCH@

stop() {
  echo "$(date '+%F %T') Slurm ends this job soon: its domain leaves the run at the end of a step"
  scancel --signal=TERM "$SLURM_JOB_ID"
}
trap stop USR2

@PROLOG@
dd2=@DD2@
run=@RUN@

echo "$(date '+%F %T') job $SLURM_JOB_ID on $SLURMD_NODENAME"
# A step gets Slurm's signal before a preemption; this script does not.
srun --nodes=1 --ntasks=1 --mpi=none --unbuffered --quiet @LAUNCH@ "$dd2" agent join "$run" \
  --domain "$SLURMD_NODENAME-$SLURM_JOB_ID" --wait @WAIT@ &
child=$!
# A signal that is trapped interrupts the wait; the last one tells what the child ended with.
while wait "$child"; [ $? -gt 128 ] && kill -0 "$child" 2>/dev/null; do :; done
wait "$child"; code=$?
echo "$(date '+%F %T') dd2 agent join ended with exit code $code"
exit "$code"
