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

run=@RUN@
@STOP@

@PROLOG@
dd2=@DD2@
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd,)
@BEGIN@

echo "$(date '+%F %T') job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $nodes"
"$dd2" run "$run/config.yaml" --run "$run" --resume --nodes "$nodes" @RUN_OPTIONS@ &
@END@
