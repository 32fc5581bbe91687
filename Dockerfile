# The server: API and worker are the same image with another command.
#   docker build -t evergrant . && docker run --rm evergrant serve
ARG PYTHON=python:3.13-slim
FROM ${PYTHON} AS build
# with the commit's time, bytecode names no time of the build (docs/releasing.md)
ARG SOURCE_DATE_EPOCH=0
WORKDIR /app
COPY requirements/server.txt requirements/server.txt
COPY requirements/key-services requirements/key-services
# a key service's client, if one is used: aws, azure, gcp, pkcs11 or vault (docs/security/key-services.md)
ARG KEY_SERVICE=""
# anything: the client of a timestamp authority (EVERGRANT_AUDIT_TIMESTAMPS)
ARG TIMESTAMPS=""
COPY requirements/timestamps.txt requirements/timestamps.txt
RUN python -m venv --without-pip /venv \
    && python -m pip --python /venv/bin/python install --no-cache-dir --disable-pip-version-check \
        --require-hashes --only-binary=:all: -r requirements/server.txt \
        ${KEY_SERVICE:+-r requirements/key-services/${KEY_SERVICE}.txt} \
        ${TIMESTAMPS:+-r requirements/timestamps.txt}

FROM ${PYTHON}
# named again for this stage: else /etc/shadow holds the day of the build
ARG SOURCE_DATE_EPOCH=0
LABEL org.opencontainers.image.title="Evergrant" \
    org.opencontainers.image.description="Self-hosted managed OAuth" \
    org.opencontainers.image.version="0.1.0" \
    org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 EVERGRANT_DATA_DIR=/var/lib/evergrant EVERGRANT_HOST=0.0.0.0
# volumes mounted here take over these folders' owner
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin evergrant \
    && install -d -o evergrant -g evergrant -m 0700 /var/lib/evergrant \
        /keys/worker /keys/api /keys/gateway
COPY --from=build /venv /venv
WORKDIR /app
COPY alembic.ini worker.py ./
COPY migrations migrations
COPY evergrant_server evergrant_server
COPY workflows workflows
COPY activities activities
COPY providers providers
USER 10001
EXPOSE 8480
ENTRYPOINT ["python", "-m", "evergrant_server"]
CMD ["serve"]
