# serving    the server, without TensorFlow and without a compiler; the root file system may be read-only
#              docker build --target serving -t leukdetect-serving .
# training   what `dvc repro` needs beside the repository, which is mounted
#              docker build --target training -t leukdetect-training .
#              docker build --target training --build-arg LOCK=gpu -t leukdetect-training:gpu .
#
# A tag can be moved by whoever owns it. To pin the bytes, add to each FROM the digest that
# `docker buildx imagetools inspect python:3.11.14-slim-bookworm` prints: python:3.11.14-slim-bookworm@sha256:…
#
# deploy/serve_like_the_image.py carries out the steps of `serving` where there is no Docker.

FROM python:3.11.14-bookworm AS serving-packages
COPY requirements/serving.txt /build/
# Left out: bytecode (20 MB for one second at the start), the driver of an embedded registry, which only a development
# machine has, packages' tests, and debug symbols (18 MB).
RUN python3.11 -m venv --without-pip /opt/venv \
    && python3.11 -m pip --python /opt/venv/bin/python install --quiet --disable-pip-version-check --no-cache-dir \
        --no-compile --require-hashes -r /build/serving.txt \
    && python3.11 -m pip --python /opt/venv/bin/python uninstall --quiet --yes alembic mako sqlalchemy \
    && find /opt/venv -type d -name tests -prune -exec rm -r {} + \
    && find /opt/venv -name '*.cpython-311-*.so' -exec strip --strip-debug {} + \
    && mkdir -p /var/lib/leukdetect

FROM python:3.11.14-slim-bookworm AS serving
COPY --from=serving-packages /opt/venv /opt/venv
# The folder mlflow/ stays out: if MLflow were missing, `import mlflow` would find the folder.
COPY leukdetect /app/leukdetect
COPY serving /app/serving
# Versions that were served, and feedback: a volume, so that a start needs no registry.
COPY --from=serving-packages --chown=10001:10001 /var/lib/leukdetect /var/lib/leukdetect
VOLUME /var/lib/leukdetect
WORKDIR /app
# The commit that it was built from, for /metrics.
ARG SOURCE_COMMIT=
ENV HOME=/tmp \
    LEUKDETECT_CACHE_DIR=/var/lib/leukdetect \
    LEUKDETECT_HOST=0.0.0.0 \
    LEUKDETECT_PORT=8000 \
    PYTHONDONTWRITEBYTECODE=1 \
    SOURCE_COMMIT=${SOURCE_COMMIT}
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=90s \
    CMD ["/opt/venv/bin/python", "-c", "from os import environ; from urllib.request import urlopen; urlopen(f\"http://127.0.0.1:{environ['LEUKDETECT_PORT']}/readyz\", timeout=2)"]
# The server is process 1: it handles SIGTERM and starts no process, so there is no init before it.
ENTRYPOINT ["/opt/venv/bin/python", "-m", "serving"]

FROM python:3.11.14-slim-bookworm AS training
# No pinned versions: Debian keeps only the newest fix of a stable release, so a pinned one fails within weeks.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/* \
    && git config --system --add safe.directory /leukdetect
# gpu: TensorFlow with NVIDIA's libraries; the host brings the driver (docker run --gpus all).
ARG LOCK=pipeline
COPY requirements/${LOCK}.txt /build/
RUN python3.11 -m venv /opt/venv \
    && /opt/venv/bin/pip install --disable-pip-version-check --no-cache-dir --require-hashes -r /build/${LOCK}.txt
ENV DVC_NO_ANALYTICS=1 \
    HOME=/tmp \
    MLFLOW_DISABLE_TELEMETRY=true \
    PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin
# docker run --user "$(id -u):$(id -g)" -v "$PWD:/leukdetect" leukdetect-training
WORKDIR /leukdetect
USER 10001:10001
CMD ["dvc", "repro"]
