#!/usr/bin/env bash
# Runs a command in the training image, on the GPU, in this folder. Secrets are passed by name, never by value.
set -euo pipefail
exec docker run --rm --gpus all --user "$(id -u):$(id -g)" --volume "$PWD:/leukdetect" --env BASE --env DVC_REMOTE \
  --env RECIPE --env AWS_ACCESS_KEY_ID --env AWS_SECRET_ACCESS_KEY --env AWS_SESSION_TOKEN --env AWS_REGION \
  --env GITHUB_ACTOR --env GITHUB_HEAD_REF --env GITHUB_REF_NAME \
  --env MLFLOW_TRACKING_URI --env MLFLOW_TRACKING_USERNAME --env MLFLOW_TRACKING_PASSWORD \
  leukdetect-training:gpu "$@"
