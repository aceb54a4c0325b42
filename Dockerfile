# One image for the code server, the pool of workers, the webserver and the daemon; docker/entrypoint tells them apart.

FROM python:3.11.14-slim-bookworm AS build
WORKDIR /build
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY requirements/run.txt requirements/
RUN pip install --no-cache-dir --no-deps --require-hashes -r requirements/run.txt
# What builds the project stays in this stage.
COPY requirements/bootstrap.txt requirements/
RUN python -m venv /opt/builder \
    && /opt/builder/bin/pip install --no-cache-dir --require-hashes -r requirements/bootstrap.txt
COPY pyproject.toml README.md LICENSE dagster.yaml workspace.yaml ./
COPY apex_dagster apex_dagster
RUN /opt/builder/bin/pip wheel --no-deps --no-build-isolation --no-index --wheel-dir dist . \
    && pip install --no-deps --no-index dist/*.whl

FROM python:3.11.14-slim-bookworm
RUN useradd --system --uid 10001 --home-dir /var/lib/apex --create-home apex \
    && mkdir -p /opt/apex/storage /var/lib/apex/inbox /var/lib/apex/pool \
    && chown -R apex: /opt/apex /var/lib/apex
COPY --from=build /opt/venv /opt/venv
COPY docker/entrypoint /usr/local/bin/entrypoint
COPY dagster.yaml docker/workspace.yaml /opt/apex/
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    DAGSTER_HOME=/opt/apex \
    APEX_HOME=/var/lib/apex
WORKDIR /opt/apex
USER apex
ENTRYPOINT ["entrypoint"]
CMD ["code"]
