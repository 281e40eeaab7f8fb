#!/bin/bash
# DD2 run @NAME@: the job of its coordinator, which keeps a job of node.sh in the queue for each node.
# Written by `dd2 submit`. To go on with the run after the job has ended: sbatch @SCRIPT@
#SBATCH --job-name=@JOB_NAME@
#SBATCH --output=@RUN@/logs/slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks=1
# Its node is lost, or the time is over: the job queues again, the nodes wait for it.
#SBATCH --requeue
#SBATCH --signal=B:USR2@@GRACE@
@SBATCH@

run=@RUN@
@STOP@

@PROLOG@
dd2=@DD2@
@BEGIN@
# Slurm tells the steps of a job about a preemption, not its script.
srun --overlap --ntasks=1 --mpi=none --quiet bash -c \
  'trap : TERM; sleep infinity & wait; scancel --batch --signal=USR1 "$SLURM_JOB_ID"' &

echo "$(date '+%F %T') job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURMD_NODENAME"
"$dd2" run "$run/config.yaml" --run "$run" --resume @RUN_OPTIONS@ &
@END@
