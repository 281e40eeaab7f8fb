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
