"""The command of app.py: which model, and where the page is served."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from ..errors import keep_imports_quiet

VARIABLE = "ARBPROB_MODEL"


def main(words: Sequence[str] | None = None) -> int:
    """Load a model and serve the page until Ctrl-C; 2 where there is no usable one, said in one line on stderr."""
    parser = argparse.ArgumentParser(description="A page that asks a model about a text, under any mask.")
    parser.add_argument(
        "--model",
        default=os.environ.get(VARIABLE),
        help=f"a run's output folder, a checkpoint, or a name on the Hub; the environment's {VARIABLE} if left out",
    )
    parser.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="run the custom patterns that come with the model's weights",
    )
    parser.add_argument(
        "--host",
        default=os.environ.get("GRADIO_SERVER_NAME"),
        help="address to listen at (default: GRADIO_SERVER_NAME, or this machine alone)",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=os.environ.get("GRADIO_SERVER_PORT"),
        help="port; 0 for any (default: GRADIO_SERVER_PORT, or the first free one from 7860)",
    )
    given = parser.parse_args(words)
    keep_imports_quiet()
    # imported here: help and a refused option wait for no framework
    from .network import load_with_tokenizer

    try:
        if find_spec("gradio") is None:
            raise ValueError("gradio: the page needs it, and it is not installed; run pip install 'gradio>=6.18'")
        network = load_with_tokenizer(given.model, trust_remote_code=given.trust_remote_code)
        from .page import build_page, serve

        page = build_page(network)
        address = serve(page, host=given.host, port=given.port)
    except (ValueError, OSError) as error:
        print(f"app: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"{network.name}: {address}", flush=True)
    page.block_thread()
    return 0
