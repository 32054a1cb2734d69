#!/usr/bin/env bash
# The steps of the workflows `train` (pull, evaluate, push, gate, report) and `champion` (pull, promote).
# DVC_REMOTE says where the data is, BASE what to compare with, RECIPE in which folder (recipes/ward; or the project's).
set -euo pipefail
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
cd "${RECIPE:-.}"

case $1 in
  pull) # earlier outputs, so that only what changed runs again; not the gate's, which always judges anew
    dvc remote add --local --force --default storage "$DVC_REMOTE"
    dvc pull --run-cache --allow-missing --with-deps evaluate
    ;;
  evaluate) dvc repro evaluate ;;
  push) dvc push --run-cache --with-deps evaluate ;;
  gate) python -m pipeline.register --dry-run --base "$BASE" ;; # exit 1: refused
  promote) # of main's newest commit alone; then dvc.lock and the champion must be one
    python -m pipeline.register
    python -m pipeline.registry.lock
    ;;
  report) python -m pipeline.reporting.pull_request --base "$BASE" ;;
  *) echo "error: no step $1" >&2 && exit 2 ;;
esac
