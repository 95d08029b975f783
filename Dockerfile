# The image of a cluster's nodes: raysere with the versions of constraints.txt, for the processor and for NVIDIA GPUs.
# extras: serve,cluster,opensmile
# openSMILE is not for commercial use: leave it out of this line where that matters, then `make image-requirements`.
#   docker build --tag registry.example.org/raysere:0.1.0-ray2.60.0 .
# Nothing is fetched when it runs: corpora, models, features and runs lie on the storage that is mounted at /shared.
FROM rayproject/ray:2.60.0-py311-gpu

# The base image's user `ray` (uid 1000) stays: no process of a job is root.
USER ray
WORKDIR /opt/raysere
COPY --chown=ray:users pyproject.toml constraints.txt requirements-image.txt README.md LICENSE CHANGELOG.md ARCHITECTURE.md Makefile ./
COPY --chown=ray:users search_spaces search_spaces
COPY --chown=ray:users experiments experiments
COPY --chown=ray:users raysere raysere
# Every wheel by its hash, except torch (and NVIDIA's libraries that it brings), whose build is that of the machine it is for.
RUN pip install --no-cache-dir --no-deps --require-hashes --requirement requirements-image.txt \
 && pip install --no-cache-dir --constraint constraints.txt torch \
 && pip install --no-cache-dir --no-deps --no-build-isolation . \
 && raysere doctor --fix --quiet

ENV RAYSERE_STORAGE=/shared/raysere \
    HF_HUB_OFFLINE=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 \
    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=raysere.serving.proxy:middlewares \
    PYTHONUNBUFFERED=1
