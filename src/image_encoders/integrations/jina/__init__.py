"""The encoders as Jina Executors, and the `Document` and `Flow` that their documentation speaks of.

    from image_encoders.integrations.jina import Document, Flow

    with Flow().add(uses="jinahub://CLIPImageEncoder") as flow:
        responses = flow.post(on="/encode", inputs=Document(blob=pixels), return_results=True)
        responses[0].docs[0].embedding      # (512,) float32

Needs the extra: pip install 'image-encoders[jina]'.
"""

import os

os.environ.setdefault("JINA_OPTOUT_TELEMETRY", "1")  # read when jina is imported: nothing is sent about your Flow

try:
    import docarray  # noqa: F401

    import jina  # noqa: F401
except ModuleNotFoundError as error:
    from image_encoders.errors import MissingExtra

    raise MissingExtra(error.name or "jina", "jina", "A Jina Executor") from error

from docarray import DocList

from image_encoders.integrations.jina.documents import Document
from image_encoders.integrations.jina.executors import (
    AudioCLIPEncoder,
    AudioCLIPImageEncoder,
    AudioCLIPTextEncoder,
    BigTransferEncoder,
    CLIPImageEncoder,
    CLIPTextEncoder,
    CustomImageTorchEncoder,
    VSEImageEncoder,
    VSETextEncoder,
)
from image_encoders.integrations.jina.flow import Flow
from image_encoders.integrations.jina.gateway import EmbeddingsGateway

__all__ = [
    "AudioCLIPEncoder",
    "AudioCLIPImageEncoder",
    "AudioCLIPTextEncoder",
    "BigTransferEncoder",
    "CLIPImageEncoder",
    "CLIPTextEncoder",
    "CustomImageTorchEncoder",
    "DocList",
    "Document",
    "EmbeddingsGateway",
    "Flow",
    "VSEImageEncoder",
    "VSETextEncoder",
]
