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
    jina.Flow.load_config(config).to_docker_compose_yaml(str(to / "compose.yml"))
    for executor in config["executors"]:  # Compose wants from:to, Kubernetes the place in the container alone
        executor["volumes"] = [volume.split(":")[1] for volume in executor["volumes"]]
    jina.Flow.load_config(config).to_kubernetes_yaml(str(to / "kubernetes"), k8s_namespace="image-encoders")


if __name__ == "__main__":
    export(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
