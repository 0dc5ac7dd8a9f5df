# One Executor on the CPU, listening on port 8081. From the folder of the repository (podman takes the same words, and
# needs --format docker besides: its own format has no HEALTHCHECK, and drops it with a warning):
#   docker build -f containers/cpu.Dockerfile --build-arg EXECUTOR=CLIPImageEncoder -t clip-image-encoder:cpu .
#   docker run -p 127.0.0.1:8081:8081 -v ./models:/workspace/models:ro clip-image-encoder:cpu \
#     --uses-with pretrained_model_name_or_path:models/clip-vit-base-patch32

ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS build
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
WORKDIR /build
COPY pyproject.toml README.md LICENSE constraints-jina.txt ./
COPY src src
# The CPU build of torch: a tenth of the size of the one with CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir -c constraints-jina.txt --extra-index-url ${TORCH_INDEX} \
      "torch==2.13.0+cpu" ".[jina,audio,heif]"

FROM ${BASE_IMAGE}
ARG EXECUTOR=CLIPImageEncoder
RUN useradd --create-home --uid 1000 encoder && mkdir /workspace /executor && chown encoder /workspace
COPY --from=build /venv /venv
# Jina looks for `config.yml` along PATH, so that a volume may cover all of /workspace.
ENV PATH=/venv/bin:/executor:$PATH JINA_OPTOUT_TELEMETRY=1 PYTHONUNBUFFERED=1
RUN cp "$(python -c 'import image_encoders as ie; print(ie.__path__[0])')/integrations/jina/configs/$EXECUTOR.yml" \
      /executor/config.yml
USER encoder
# Weights come in volumes: /workspace/pretrained, /workspace/.cache, /workspace/runs, or all of /workspace.
WORKDIR /workspace
VOLUME /workspace
EXPOSE 8081
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s CMD ["jina", "ping", "executor", "127.0.0.1:8081"]
ENTRYPOINT ["jina", "executor", "--uses", "config.yml", "--host", "0.0.0.0", "--port", "8081"]
