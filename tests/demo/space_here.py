"""Uploads a Space to a Hub on this machine by the documented commands, downloads it, and starts it as Spaces start."""

import contextlib
import fcntl
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock
from huggingface_hub import snapshot_download
from huggingface_hub.cli.hf import app as hf

from tests.hub.hub import reached_from_here, serve

ROOT = Path(__file__).parents[2]
NAME = "tester/ask"
# refuses, and writes down, whatever goes to another machine; notes whose package it was; ends with the last user
GUARD = """
import fcntl, ipaddress, os, sys, threading

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

def leave():
    with open(os.environ["GUARD_USERS"]) as users:
        fcntl.flock(users, fcntl.LOCK_EX)
        os._exit(0)

sys.addaudithook(guard)
threading.Thread(target=leave, daemon=True).start()
"""
# a busy machine is slow to import everything
SECONDS = 240


@dataclass(frozen=True)
class Space:
    """A Space that runs: its folder and port, the file of its notes and that of what it printed."""

    folder: Path
    port: int
    notes: Path
    log: Path

    @property
    def address(self) -> str:
        """Of its page."""
        return f"http://127.0.0.1:{self.port}/"


def commands() -> list[list[str]]:
    """The words behind `hf` in the commands of the documentation, with a name on the Hub of the tests."""
    page = ROOT / "docs" / "pictures-and-page.md"
    lines = re.findall(r"^hf ((?:repos|upload) .*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [shlex.split(line.replace("somebody/ask", NAME)) for line in lines]


def upload_and_download(folder: Path, hub: Path) -> None:
    """Give the documented commands, in order, to a Hub that is kept in `hub`, and download what came of them."""
    with serve(hub) as address, reached_from_here(address), pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for words in commands():
            # raises where the command line would end with an error
            hf.main(args=words, prog_name="hf", standalone_mode=False)
        snapshot_download(NAME, repo_type="space", local_dir=folder)


@contextlib.contextmanager
def served_space(folder: Path, checkpoint: Path, shared: Path) -> Iterator[Space]:
    """Use the Space that runs in `folder`, starting it where it does not; it ends with its last user."""
    with (shared / "users").open("a") as user:
        # waits while a server without users is on its way out
        fcntl.flock(user, fcntl.LOCK_SH)
        with FileLock(shared / "starting.lock"):
            port = shared / "port"
            served = Space(folder, int(port.read_text()) if port.exists() else 0, shared / "notes", shared / "log")
            if not _answers(served):
                served = _start(folder, checkpoint, shared)
                port.write_text(str(served.port))
        yield served


def _start(folder: Path, checkpoint: Path, shared: Path) -> Space:
    # as the Hub does: without arguments, what app.py needs in the environment
    guard = shared / "guard"
    guard.mkdir(exist_ok=True)
    (guard / "sitecustomize.py").write_text(GUARD)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        served = Space(folder, one.getsockname()[1], shared / "notes", shared / "log")
    environment = {
        **os.environ,
        "PYTHONPATH": str(guard),
        "GUARD_NOTES": str(served.notes),
        "GUARD_USERS": str(shared / "users"),
        "ARBPROB_MODEL": str(checkpoint),
        "GRADIO_SERVER_PORT": str(served.port),
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }
    # a child of nobody's: another process may use it longer than this one lives
    line = f"{shlex.quote(sys.executable)} app.py >{shlex.quote(str(served.log))} 2>&1 &"
    subprocess.run(["sh", "-c", line], cwd=folder, env=environment, check=True)
    until = time.monotonic() + SECONDS
    while f": {served.address}" not in (text := served.log.read_text() if served.log.exists() else ""):
        if time.monotonic() > until or "app: error" in text or "Traceback" in text:
            pytest.fail(f"app.py did not start: {text}")
        time.sleep(0.1)
    return served


def _answers(served: Space) -> bool:
    with socket.socket() as one:
        return served.port != 0 and one.connect_ex(("127.0.0.1", served.port)) == 0


def fetch(address: str) -> str:
    """The text at an address of this machine."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(address, timeout=60) as answer:
        text: str = answer.read().decode()
    return text
