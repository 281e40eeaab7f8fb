#!/usr/bin/env bash
# usage: steps_test.sh BIN_DIR, $DD2_DEVICE_LIBRARY the far device: dd2-gpu-steps on it, small; then that the updates in
# PyTorch which scripts/gpu-check times beside have dd2's losses and gradients, on the CPU.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
source "$root/scripts/env.sh"
source "$root/scripts/torch_venv.sh"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$1/dd2-gpu-steps" --tiny --json "$folder/steps.json" --case "$folder/case"
prepare_torch_venv
"$dd2_torch_venv/bin/python" "$root/tests/gpu/rival_steps.py" "$folder/case" "$folder/steps.json" "$folder/rival.json" \
  --device cpu --eager
