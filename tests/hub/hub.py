"""Starts the server of hubserver.py on a free port, and says how the real clients reach it.

with serve(folder, {"dataset:somebody/texts": texts}) as address:
    subprocess.run(command, env=client_environment(address, home))
"""

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from hub.hubserver import Handler, Hub, seed

TOKEN = "hf_test"


@contextlib.contextmanager
def serve(root: Path, seeds: Mapping[str, Path] | None = None, *, handler: type[Handler] = Handler) -> Iterator[str]:
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
