"""compose.yml and kubernetes/ from flow.yml, by Jina's own export: python containers/export.py [FOLDER]"""

import os
import sys
from pathlib import Path

# read when jina is imported; the gateway runs in the same image, so that one has to be built
os.environ["JINA_GATEWAY_IMAGE"] = "clip-image-encoder:cpu"
os.environ["JINA_OPTOUT_TELEMETRY"] = "1"
os.environ.pop("JINA_DEFAULT_HOST", None)

import yaml

import jina

HERE = Path(__file__).parent


def export(to: Path) -> None:
    """Write both forms below `to`."""
    config = yaml.safe_load((HERE / "flow.yml").read_text())
    compose = to / "compose.yml"
    jina.Flow.load_config(config).to_docker_compose_yaml(str(compose))
    _seldom(compose)
    for executor in config["executors"]:  # Compose wants from:to, Kubernetes the place in the container alone
        executor["volumes"] = [volume.split(":")[1] for volume in executor["volumes"]]
    jina.Flow.load_config(config).to_kubernetes_yaml(str(to / "kubernetes"), k8s_namespace="image-encoders")
    for path in (to / "kubernetes").rglob("*.yml"):
        _seldom(path)


def _seldom(path: Path) -> None:
    """Check health every 30 s: `jina ping` takes two seconds of a processor, and Jina asks for it every 2 or 5 s."""
    documents = list(yaml.safe_load_all(path.read_text()))
    for document in documents:
        for service in document.get("services", {}).values():  # Compose
            service["healthcheck"] |= {"interval": "30s", "timeout": "10s", "start_period": "120s"}
        containers = document.get("spec", {}).get("template", {}).get("spec", {}).get("containers", [])
        for container in containers:  # Kubernetes, where a startupProbe sees to the first minutes
            container["livenessProbe"]["periodSeconds"] = 30
    path.write_text(yaml.safe_dump_all(documents, sort_keys=False))


if __name__ == "__main__":
    export(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
