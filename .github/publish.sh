#!/usr/bin/env bash
# Builds a target of the Dockerfile for a release, with labels, an SBOM and its provenance, pushes it and signs its digest.
#   GITHUB_REF_NAME=v0.1.0 … .github/publish.sh serving     (the workflow `release`; REGISTRY_TOKEN may write packages)
set -euo pipefail
target=$1 version=${GITHUB_REF_NAME#v} image=ghcr.io/${GITHUB_REPOSITORY,,}-$1

docker login ghcr.io --username "$GITHUB_ACTOR" --password-stdin <<< "$REGISTRY_TOKEN"
docker buildx create --use --driver docker-container # the default driver makes neither SBOM nor provenance
labels=(
  "title=leukdetect-$target" "version=$version" "revision=$GITHUB_SHA" "created=$(git log -1 --format=%cI)"
  "source=$GITHUB_SERVER_URL/$GITHUB_REPOSITORY" "licenses=MIT"
)
docker buildx build --target "$target" --push --tag "$image:$version" --build-arg "SOURCE_COMMIT=$GITHUB_SHA" \
  "${labels[@]/#/--label=org.opencontainers.image.}" --sbom=true --provenance=mode=max --metadata-file metadata.json .
digest=$(python3 -c 'import json; print(json.load(open("metadata.json"))["containerimage.digest"])')
cosign sign --yes "$image@$digest" # the digest: a tag can be moved
echo "\`$image:$version@$digest\`" >> "$GITHUB_STEP_SUMMARY"
