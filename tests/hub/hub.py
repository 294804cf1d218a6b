"""Starts the server of hubserver.py on a free port, and says how the real clients reach it.

with serve(folder, {"dataset:somebody/texts": texts}) as address:
    subprocess.run(command, env=client_environment(address, home))
"""

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.hub.hubserver import Handler, Hub, seed, validate_card

# of the form and length of a real one
TOKEN = "hf_" + "TestTestTestTestTestTestTestTestTe"


class Answering(Handler):
    """Answers as the Hub does where the server is more lenient: a card with errors is a bad request."""

    def route_api(self, path: str, q: dict[str, str]) -> None:
        if path != "/api/validate-yaml":
            super().route_api(path, q)
            return
        asked = self.json()
        found = validate_card(asked["content"], asked["repoType"])
        self.send(400 if found["errors"] else 200, found)


@contextlib.contextmanager
def serve(root: Path, seeds: Mapping[str, Path] | None = None, *, handler: type[Handler] = Answering) -> Iterator[str]:
    """Run a Hub that keeps its repositories below `root` while the block runs; gives its address.

    Args:
        seeds: repositories there from the start, `TYPE:OWNER/NAME` to the folder that holds the files.
        handler: answers the requests; a subclass may refuse or break off some.
    """
    server = Hub(("127.0.0.1", 0), root)
    server.RequestHandlerClass = handler
    for name, folder in (seeds or {}).items():
        kind, repository = name.split(":", 1)
        seed(server.store, kind, repository, folder, server)
    # the interval is how long leaving waits
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def client_environment(address: str, home: Path, *, token: str | None = TOKEN) -> dict[str, str]:
    """This process's environment, for clients of `address` whose caches are in `home`; anonymous without `token`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    ours = {
        "HF_ENDPOINT": address,
        "HF_HOME": str(home),
        # the server has no storage of that kind
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }
    return {**kept, **ours, **({"HF_TOKEN": token} if token else {})}


@contextlib.contextmanager
def reached_from_here(address: str, *, token: str = TOKEN) -> Iterator[None]:
    """Let the clients in this very process, which know no Hub in tests, reach `address`."""
    with pytest.MonkeyPatch.context() as patch:
        # read from the environment when huggingface_hub was imported
        patch.setattr("huggingface_hub.constants.ENDPOINT", address)
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        # transformers keeps the one client that it made
        patch.setattr("transformers.utils.hub._hf_api", None)
        patch.setenv("HF_TOKEN", token)
        for name in ("NO_PROXY", "no_proxy"):
            patch.setenv(name, "127.0.0.1,localhost")
        yield
