# Heliograph with its pinned set, for GPU nodes and heads alike; PyPI's PyTorch wheel brings its own CUDA libraries.
#   docker build -t heliograph .
FROM python:3.11-slim-bookworm

# What KubeRay expects of an image: a user of its own, and wget for the health probes.
RUN apt-get update \
    && apt-get install -y --no-install-recommends wget tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 ray

WORKDIR /home/ray/heliograph
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY deployments deployments
COPY workers workers
COPY planner planner
COPY checkpoints/shapes checkpoints/shapes
COPY examples examples
RUN pip install --no-cache-dir -c constraints.txt -e . && chown -R ray /home/ray

USER ray
ENV RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 HF_HUB_OFFLINE=1
ENTRYPOINT ["tini", "--"]
CMD ["heliograph", "--help"]
