# The HTTP service on the CPU, listening on port 8000. From the folder of the repository (podman takes the same words, and
# needs --format docker besides: its own format has no HEALTHCHECK, and drops it with a warning):
#   docker build -f containers/serve.Dockerfile -t image-encoders-serve .
#   docker run -p 127.0.0.1:8000:8000 -e IMAGE_ENCODERS_SERVE_API_KEYS="$KEY" -v models:/workspace/.cache \
#     image-encoders-serve --model clip/openai/clip-vit-base-patch32

ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS build
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
WORKDIR /build
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
# The CPU build of torch: a tenth of the size of the one with CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir -c constraints.txt --extra-index-url ${TORCH_INDEX} \
      "torch==2.13.0+cpu" ".[serve,audio,heif]"

FROM ${BASE_IMAGE}
RUN useradd --create-home --uid 1000 encoder && mkdir -p /workspace/.cache && chown -R encoder /workspace
COPY --from=build /venv /venv
# Weights are kept in the volume: those from the Hugging Face hub, and their converted copies.
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 HF_HOME=/workspace/.cache/huggingface \
    IMAGE_ENCODERS_CACHE=/workspace/.cache/image-encoders
USER encoder
WORKDIR /workspace
VOLUME /workspace/.cache
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s CMD ["python", "-c", \
    "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health/ready', timeout=4)"]
# Without a key it does not start; --no-auth starts it without one, where nobody else reaches it.
ENTRYPOINT ["image-encoders", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["--model", "clip/demo"]
