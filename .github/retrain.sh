#!/usr/bin/env bash
# Whether the images that SERVER answers have drifted from those that its model was validated on: then one open issue
# says so, and what to do. Exit 0 with or without drift; 1 where the server could not be asked.
set -euo pipefail
title="Drift: does the model have to be trained anew?"

code=0
python -m monitoring.report --server "$SERVER" --out reports/drift.html || code=$?
case $code in
  0) echo "no drift" && exit ;;
  3) ;;
  *) exit 1 ;;
esac
if [ -n "$(gh issue list --state open --search "in:title \"$title\"" --json number --jq '.[].number')" ]; then
  echo "the issue is open already" && exit
fi
gh issue create --title "$title" --body "The report is the artifact \`drift\` of $GITHUB_SERVER_URL/$GITHUB_REPOSITORY/actions/runs/$GITHUB_RUN_ID.

First find the cause (docs/operations.md, Drift): a lamp, a stain or a scanner is mended in the laboratory. Where the images have
changed for good, add new ones to the data, label a pull request \`train\`, and let the gate compare."
