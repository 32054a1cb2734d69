#!/usr/bin/env bash
# The steps of a training, as the workflow `train` takes them: pull, evaluate, push, gate, report.
# Each is told where the data is (DVC_REMOTE) or what to compare with (BASE).
set -euo pipefail

case $1 in
  pull) # what was made before, so that only what changed is made anew. Not the gate's: it always judges anew
    dvc remote add --local --force --default storage "$DVC_REMOTE"
    dvc pull --run-cache --allow-missing --with-deps evaluate
    ;;
  evaluate) dvc repro evaluate ;;
  push) dvc push --run-cache --with-deps evaluate ;;
  gate) # exit 1: refused
    dvc repro register || exit 1
    dvc push register
    ;;
  report) python -m pipeline.reporting.pull_request --base "$BASE" ;;
  *) echo "error: no step $1" >&2 && exit 2 ;;
esac
