"""The Hub of the tests answers the real client: what is seeded can be read, what is pushed is there."""

import subprocess
import sys
from pathlib import Path

from tests.hub.hub import client_environment, serve

CLIENT = """
from huggingface_hub import HfApi, create_repo, hf_hub_download
print(open(hf_hub_download("somebody/texts", "one.txt", repo_type="dataset")).read())
create_repo("tester/model", private=True)
HfApi().upload_file(path_or_fileobj=b"a" * 1000, path_in_repo="weights.bin", repo_id="tester/model")
print(HfApi().list_repo_files("tester/model"))
print(HfApi(token=False).repo_exists("tester/model"))
"""


def test_the_real_client_reads_what_is_seeded_and_finds_what_it_pushed(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "one.txt").write_text("a document")
    with serve(tmp_path / "hub", {"dataset:somebody/texts": tmp_path / "texts"}) as address:
        done = subprocess.run(
            [sys.executable, "-c", CLIENT],
            env=client_environment(address, tmp_path / "home"),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["a document", "['.gitattributes', 'weights.bin']", "False"]
