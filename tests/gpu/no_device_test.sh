#!/usr/bin/env bash
# usage: no_device_test.sh GPU_CHECK BIN_DIR. That `scripts/gpu-check` where no GPU is seen says so in
# one line, ends with exit code 4 and writes no report.
set -u
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
output=$(CUDA_VISIBLE_DEVICES='' DD2_BIN_DIR=$2 "$1" --out "$folder" 2>&1)
code=$?
echo "$output"
[ "$code" -eq 4 ] || { echo "exit code $code, wanted 4"; exit 1; }
[ "$(grep -c '' <<<"$output")" -eq 1 ] || { echo "more than one line"; exit 1; }
[[ $output == "no GPU here: "* ]] || { echo "another line"; exit 1; }
[ -z "$(ls "$folder")" ] || { echo "a report without a GPU: $(ls "$folder")"; exit 1; }
