"""`image-encoders flow`: a Jina Flow from YAML, in today's form or an older one."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from image_encoders.cli.options import local_path
from image_encoders.cli.printing import error_sentence, say
from image_encoders.errors import ImageEncodersError

EXAMPLES = """\b
Examples:
  image-encoders flow flow.yml
\b
A Flow of one Executor, listening where clients of Jina find it:
  jtype: Flow
  with: {port: 54321}
  executors:
    - uses: CLIPImageEncoder
      uses_with: {pretrained_model_name_or_path: openai/clip-vit-base-patch32}"""


def flow(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FLOW.yml", help="With executors:, or with pods: as in Jina 1 and 2.", parser=local_path
        ),
    ],
) -> None:
    """Start a Jina Flow and run it until Ctrl-C or SIGTERM.

    Executors are named as in their documentation: CLIPImageEncoder, jinahub://CLIPImageEncoder, or a config.yml. The
    Flow listens on 127.0.0.1 unless the file says otherwise. Requires pip install 'image-encoders[jina]'.
    """
    if not path.is_file():
        raise ImageEncodersError(f"{path}: no such Flow file")
    loaded = _loaded(path)
    try:
        _start(loaded, path)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # after the start, as processes inherit it
        scheme = str(loaded.protocol).lower().rpartition(".")[2]
        say(f"listening on {scheme}://{loaded.host}:{loaded.port}; Ctrl-C stops it")
        loaded.block()
    except KeyboardInterrupt:
        pass
    finally:
        loaded.close()
    say("stopped")


def _loaded(path: Path) -> Any:
    from image_encoders.integrations.jina import Flow

    try:
        return Flow.load_config(str(path))
    except (ImageEncodersError, OSError):
        raise
    except Exception as error:  # of the YAML parser or of Jina
        raise ImageEncodersError(f"{path}: {error_sentence(error)}") from error


def _start(flow: Any, path: Path) -> None:
    try:
        flow.start()
    except Exception as error:
        raise ImageEncodersError(f"{path}: the Flow cannot start; the reason is above") from error
