newest() { ls "$run/checkpoints" 2>/dev/null | tail -n 1; }
before=$(newest)
# Somebody who submits the job again wants the run to go on; Slurm, which only queues it again, has not heard of the cancelling.
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && [ -e "$run/slurm/cancelled" ]; then
  echo "$(date '+%F %T') the run was cancelled (dd2 cancel)"
  exit 0
fi
rm -f "$run/slurm/cancelled" "$run/slurm/ended-by"
