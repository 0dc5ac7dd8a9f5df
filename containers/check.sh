#!/usr/bin/env bash
# Builds the CPU image, runs its Executor and encodes documents from a client outside: containers/check.sh
# Where there is no podman, no base image or no package index to build from, it says so in one sentence and ends with 0.
#
#   BASE_IMAGE   the image to build on                          [python:3.11-slim]
#   TORCH_INDEX  the package index that has torch for the CPU   [https://download.pytorch.org/whl/cpu]
#   BUILD_ARGS   further arguments of `podman build`, such as --volume with the configuration of another package index
#   CLIENT       the python of an environment with image-encoders[jina]   [.venv-jina/bin/python]
#   REQUIRED=1   what would be skipped fails
set -eu
cd "$(dirname "$0")/.."
base=${BASE_IMAGE:-python:3.11-slim}
torch_index=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
python=${CLIENT:-.venv-jina/bin/python}
image=image-encoders-check:cpu
work=$(mktemp -d)
container= executor=

finish() {
    [ -z "$executor" ] || { kill -- "-$executor" || true; wait "$executor" || true; } 2>/dev/null
    [ -z "$container" ] || buildah rm "$container" >/dev/null 2>&1 || true
    podman rm --force --time 5 image-encoders-check >/dev/null 2>&1 || true
    podman rmi --force image-encoders-check:reach "$image" >/dev/null 2>&1 || true
    rm -rf "$work"
}
skip() {
    echo "container check skipped: $1"
    exit "${REQUIRED:-0}"
}

build() { # shellcheck disable=SC2086
    timeout 1800 podman build --format docker --pull=never --layers=false ${isolation:-} --network=host \
        ${BUILD_ARGS:-} "$@"
}

command -v podman >/dev/null || skip "podman is not installed"
trap finish EXIT
podman image exists "$base" || timeout 120 podman pull --quiet "$base" >/dev/null 2>&1 ||
    skip "the base image $base is neither here nor can it be pulled (BASE_IMAGE names another)"

# Where containers may not have control groups of their own, podman cannot run any, and buildah can without isolation.
isolation= runner=podman
if ! podman run --rm --name image-encoders-check "$base" true >/dev/null 2>&1; then
    command -v buildah >/dev/null || skip "podman cannot run containers here, and buildah is not installed"
    isolation=--isolation=chroot runner=buildah
fi

printf 'FROM %s\nRUN pip index versions jina && pip index versions torch --extra-index-url %s | grep -F 2.13.0+cpu\n' \
    "$base" "$torch_index" >"$work/reach.Dockerfile"
build --file "$work/reach.Dockerfile" --tag image-encoders-check:reach "$work" >"$work/log" 2>&1 ||
    skip "a build here reaches no package index with jina, or none with torch 2.13.0+cpu (BUILD_ARGS, TORCH_INDEX): $(
        tail -n 1 "$work/log")"

echo "building the CPU image on $base"
build --build-arg BASE_IMAGE="$base" --build-arg TORCH_INDEX="$torch_index" \
    --file containers/cpu.Dockerfile --tag "$image" . >"$work/log" 2>&1 || { tail -n 40 "$work/log"; exit 1; }
health=$(podman image inspect --format '{{json .HealthCheck}}' "$image")
case $health in *'"jina","ping","executor"'*) ;; *) echo "the image has no health check: $health"; exit 1 ;; esac

port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
model=$PWD/src/image_encoders/assets/clip-demo
set -- jina executor --uses config.yml --host 127.0.0.1 --port "$port" --uses-with \
    pretrained_model_name_or_path:models/demo
if [ $runner = podman ]; then
    in_container() { podman exec image-encoders-check "$@"; }
    set -m
    podman run --rm --name image-encoders-check --network=host --volume "$model:/workspace/models/demo:ro" \
        --entrypoint '[]' "$image" "$@" >"$work/log" 2>&1 &
else
    container=$(buildah from --pull-never "$image")
    in_container() { buildah run --isolation=chroot --network=host "$container" -- "$@"; }
    set -m
    buildah run --isolation=chroot --network=host --volume "$model:/workspace/models/demo:ro" "$container" -- \
        "$@" >"$work/log" 2>&1 &
fi
executor=$!
set +m
timeout 300 "$python" containers/client.py "127.0.0.1:$port" || { tail -n 40 "$work/log"; exit 1; }
in_container jina ping executor "127.0.0.1:$port" >"$work/ping" 2>&1 || { cat "$work/ping"; exit 1; }
echo "container check passed: image built, health check in it, documents encoded by its Executor"
