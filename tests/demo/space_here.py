"""Uploads a Space to a Hub of one's own by the commands of README.md, downloads it, and starts it as a Space starts."""

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hub.hub import reached_from_here, serve
from huggingface_hub import snapshot_download
from huggingface_hub.cli.hf import app as hf

ROOT = Path(__file__).parents[2]
NAME = "tester/ask"
# refuses, and writes down, whatever goes to another machine; notes whose package it was
GUARD = """
import ipaddress, os, sys

def note(text):
    with open(os.environ["GUARD_NOTES"], "a") as file:
        file.write(text + "\\n")

def guard(event, args):
    if event == "import" and args[0] == "gradio":
        note("package " + sys.modules["arbprob_hf"].__file__)
    if event in ("socket.connect", "socket.sendto") and isinstance(args[1], tuple):
        if not ipaddress.ip_address(args[1][0]).is_loopback:
            note("elsewhere " + str(args[1]))
            raise OSError("no network here")
    if event == "socket.getaddrinfo" and args[0] not in ("127.0.0.1", "localhost", None):
        note("elsewhere " + str(args[0]))
        raise OSError("no network here")

sys.addaudithook(guard)
"""
# a busy machine is slow to import everything
SECONDS = 240


@dataclass(frozen=True)
class Space:
    """A Space that runs: its folder, its address, the file of its notes and that of what it printed."""

    folder: Path
    address: str
    notes: Path
    log: Path


def commands() -> list[list[str]]:
    """The words behind `hf` in the commands of README.md, with a name on the Hub of the tests."""
    lines = re.findall(r"^hf ((?:repos|upload) .*)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    return [shlex.split(line.replace("somebody/ask", NAME)) for line in lines]


def upload_and_download(base: Path) -> Path:
    """Give the commands of README.md, in order, and download what came of them; the folder."""
    with (
        serve(base / "hub") as address,
        reached_from_here(address),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.chdir(ROOT)
        for words in commands():
            # raises where the command line would end with an error
            hf.main(args=words, prog_name="hf", standalone_mode=False)
        snapshot_download(NAME, repo_type="space", local_dir=base / "files")
    return base / "files"


@contextlib.contextmanager
def serve_space(folder: Path, checkpoint: Path, base: Path) -> Iterator[Space]:
    """Start app.py in its folder, as the Hub does: without arguments, what it needs in the environment."""
    (base / "guard").mkdir()
    (base / "guard" / "sitecustomize.py").write_text(GUARD)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    served = Space(folder, f"http://127.0.0.1:{port}/", base / "notes", base / "log")
    served.notes.touch()
    environment = {
        **os.environ,
        "PYTHONPATH": str(base / "guard"),
        "GUARD_NOTES": str(served.notes),
        "ARBPROB_MODEL": str(checkpoint),
        "GRADIO_SERVER_PORT": str(port),
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }
    with served.log.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            _wait(process, served)
            yield served
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0, served.log.read_text()
        finally:
            process.kill()
            process.wait()


def fetch(address: str) -> str:
    """The text at an address of this machine."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(address, timeout=60) as answer:
        text: str = answer.read().decode()
    return text


def _wait(process: subprocess.Popen[bytes], served: Space) -> None:
    until = time.monotonic() + SECONDS
    while f": {served.address}" not in served.log.read_text():
        if process.poll() is not None or time.monotonic() > until:
            pytest.fail(f"app.py did not start: {served.log.read_text()}")
        time.sleep(0.1)
