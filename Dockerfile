# docker run IMAGE                                serves, on port 9999
# docker run IMAGE echoload run HOST:PORT         loads a server
# docker run IMAGE echoclient --ping HOST:PORT    asks whether it answers

FROM python:3.13-slim AS build

WORKDIR /src
# Everything that is installed, the build backend included, passes through its hash here. What
# only development needs is fetched as well, and stays in this stage.
COPY requirements.lock ./
RUN python -m venv /build \
    && /build/bin/pip download --quiet --require-hashes --only-binary :all: \
       --dest /wheels -r requirements.lock \
    && /build/bin/pip install --quiet --no-index --find-links /wheels hatchling

COPY pyproject.toml README.md LICENSE ./
COPY echoserver echoserver
COPY clients clients
COPY loadtest loadtest
RUN /build/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /wheels . \
    && python -m venv --without-pip /opt/echoserver \
    && /build/bin/pip --python /opt/echoserver/bin/python install --quiet --no-index \
       --find-links /wheels --compile 'echoserver[metrics]'


FROM python:3.13-slim

COPY --from=build /opt/echoserver /opt/echoserver

# In a container, the address to be reached at is every one it has. The health check and the
# server read the same variables.
ENV PATH=/opt/echoserver/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    ECHOSERVER_HOST=0.0.0.0 \
    ECHOSERVER_PORT=9999

USER 65532:65532
EXPOSE 9999
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 CMD ["echoclient", "--ping"]
CMD ["echoserver"]
