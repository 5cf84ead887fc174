# Any Debian or Ubuntu whose python3 is 3.11 or newer.
ARG BASE=debian:12-slim

FROM ${BASE} AS build
# Not pinned: the base's own security updates are wanted. What comes from the package index is, by hash.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements.lock ./
RUN python3 -m venv /opt/softgauge && /opt/softgauge/bin/pip install --no-cache-dir --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE softgauge.py ./
COPY engine engine
COPY service service
RUN /opt/softgauge/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM ${BASE}
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends python3 && rm -rf /var/lib/apt/lists/* \
    && mkdir /data && chown 10001:10001 /data
COPY --from=build /opt/softgauge /opt/softgauge
ENV PATH=/opt/softgauge/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    SOFTGAUGE_HOST=127.0.0.1 SOFTGAUGE_PORT=8000 SOFTGAUGE_DATA_DIR=/data
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
# http.client, because urllib would ask a proxy named in the environment.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 CMD ["python", "-c", \
    "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['SOFTGAUGE_PORT']), timeout=2); c.request('GET', '/health/ready'); sys.exit(c.getresponse().status != 200)"]
CMD ["softgauge", "serve"]
