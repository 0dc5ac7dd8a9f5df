"""The container files: what can be checked where no container engine is."""

from __future__ import annotations

import filecmp
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from image_encoders.integrations.jina.flow import CONFIGS

ROOT = Path(__file__).parents[2]
CONTAINERS = ROOT / "containers"
INSTRUCTIONS = ["FROM", "RUN", "ENV", "WORKDIR", "COPY", "ARG", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT"]


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, its argument) of a Dockerfile, continued lines joined, comments left out."""
    lines = [line for line in path.read_text().split("\n") if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).split("\n")
    return [tuple(line.split(" ", 1)) for line in joined]  # type: ignore[misc]


def test_the_exported_files_are_what_jina_exports_now(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(CONTAINERS / "export.py"), str(tmp_path)], check=True, timeout=300)
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.yml"))
    assert made == [Path("compose.yml"), Path("kubernetes/encoder/encoder.yml"), Path("kubernetes/gateway/gateway.yml")]
    _, different, missing = filecmp.cmpfiles(tmp_path, CONTAINERS, [str(path) for path in made], shallow=False)
    assert not different + missing, "run python containers/export.py"


def test_the_exported_files_start_the_image_that_the_dockerfile_names() -> None:
    compose = yaml.safe_load((CONTAINERS / "compose.yml").read_text())
    assert {service["image"] for service in compose["services"].values()} == {"clip-image-encoder:cpu"}
    assert "-t clip-image-encoder:cpu" in (CONTAINERS / "cpu.Dockerfile").read_text()
    assert compose["services"]["encoder"]["volumes"] == ["./models:/workspace/models"]
    (kubernetes,) = [
        one
        for one in yaml.safe_load_all((CONTAINERS / "kubernetes" / "encoder" / "encoder.yml").read_text())
        if one["kind"] == "StatefulSet"
    ]
    (container,) = kubernetes["spec"]["template"]["spec"]["containers"]
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/workspace/models"]


@pytest.mark.parametrize("name", ["cpu.Dockerfile", "gpu.Dockerfile"])
def test_the_dockerfiles_hold_together(name: str) -> None:
    found = instructions(CONTAINERS / name)
    assert {instruction for instruction, _ in found} <= set(INSTRUCTIONS)
    stages = [argument for instruction, argument in found if instruction == "FROM"]
    assert stages[0].endswith(" AS build")
    assert len(stages) == 2
    for instruction, argument in found:
        if instruction == "COPY" and not argument.startswith("--from=build"):
            assert all((ROOT / source).exists() for source in argument.split()[:-1])
        if argument.startswith("["):
            assert all(isinstance(word, str) for word in json.loads(argument))
    last = [argument for instruction, argument in found if instruction == "USER"][-1]
    assert last != "root"
    order = [instruction for instruction, _ in found]
    assert order.index("USER") < order.index("ENTRYPOINT")
    (port,) = [argument for instruction, argument in found if instruction == "EXPOSE"]
    (entry,) = [json.loads(argument) for instruction, argument in found if instruction == "ENTRYPOINT"]
    assert entry[entry.index("--port") + 1] == port
    (health,) = [argument for instruction, argument in found if instruction == "HEALTHCHECK"]
    assert f"127.0.0.1:{port}" in health
    arguments = dict(argument.split("=", 1) for instruction, argument in found if instruction == "ARG")
    assert (CONFIGS / f"{arguments['EXECUTOR']}.yml").is_file()
    assert all(stage.startswith("${BASE_IMAGE}") for stage in stages)
    assert arguments["BASE_IMAGE"] == "python:3.11-slim"


def test_the_two_dockerfiles_differ_only_in_torch_and_device() -> None:
    cpu, gpu = (instructions(CONTAINERS / f"{kind}.Dockerfile") for kind in ("cpu", "gpu"))
    cpu.remove(("ARG", "TORCH_INDEX=https://download.pytorch.org/whl/cpu"))
    different = [(one, other) for one, other in zip(cpu, gpu, strict=True) if one != other]
    assert len(different) == 1
    assert "torch==2.13.0+cpu" in different[0][0][1]
    assert "cpu" not in different[0][1][1]


def test_compose_and_kubernetes_check_health_and_not_all_the_time() -> None:
    for service in yaml.safe_load((CONTAINERS / "compose.yml").read_text())["services"].values():
        assert service["healthcheck"]["test"].startswith("jina ping ")
        assert service["healthcheck"]["interval"] == "30s"
    for path in (CONTAINERS / "kubernetes").rglob("*.yml"):
        (deployed,) = [
            one for one in yaml.safe_load_all(path.read_text()) if one["kind"] in ("StatefulSet", "Deployment")
        ]
        (container,) = deployed["spec"]["template"]["spec"]["containers"]
        for probe in ("startupProbe", "livenessProbe"):
            assert container[probe]["exec"]["command"][:2] == ["jina", "ping"]
        assert container["livenessProbe"]["periodSeconds"] == 30


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ({}, "podman is not installed"),
        ({"podman": "exit 1"}, "the base image nowhere/at-all:1 is neither here nor can it be pulled"),
        ({"podman": '[ "$1" != run ]'}, "podman cannot run containers here, and buildah is not installed"),
        ({"podman": '[ "$1" != build ]'}, "a build here reaches no package index with jina"),
    ],
)
def test_the_container_check_says_why_it_is_skipped(there: dict[str, str], said: str, tmp_path: Path) -> None:
    for tool in ("bash", "dirname", "mktemp", "rm", "timeout", "tail", "env"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    for tool, script in there.items():
        (tmp_path / tool).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (tmp_path / tool).chmod(0o755)
    check = [str(CONTAINERS / "check.sh")]
    for required, status in (("0", 0), ("1", 1)):
        environment = {"PATH": str(tmp_path), "BASE_IMAGE": "nowhere/at-all:1", "REQUIRED": required}
        ran = subprocess.run(check, env=environment, capture_output=True, text=True, timeout=300)
        assert (ran.returncode, ran.stderr) == (status, "")
        assert ran.stdout.startswith(f"container check skipped: {said}")
        assert ran.stdout.count("\n") == 1


def test_jina_finds_the_configuration_along_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the image, where a volume may cover the working folder."""
    from jina.jaml.helper import complete_path

    (tmp_path / "config.yml").write_text("jtype: CLIPImageEncoder\n")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.chdir("/")
    assert complete_path("config.yml") == str(tmp_path / "config.yml")
