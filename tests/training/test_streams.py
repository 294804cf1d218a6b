"""A run over a stream ends, resumes and describes itself like any other."""

import copy
import hashlib
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from arbprob_hf.data import StreamedBlocks, load_tokenizer
from arbprob_hf.data.shares import StreamPosition
from arbprob_hf.data.streaming import Streamed
from arbprob_hf.errors import UsageError, exit_on_user_error
from arbprob_hf.runs.record import compare, describe_stream, write_record
from arbprob_hf.training.arguments import parse
from arbprob_hf.training.card_facts import _source
from arbprob_hf.training.run import Outcome, train

PROSE = "a mask says which key a query may see and no other so that nothing leaks from what comes later"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return load_tokenizer("gpt2")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three parquet files, twenty documents each."""
    folder = tmp_path_factory.mktemp("text")
    words = PROSE.split()
    for file in range(3):
        texts = [" ".join((words[number % 7 :] + words[: number % 7]) * 3) + f" {file}" for number in range(20)]
        Dataset.from_dict({"text": texts}).to_parquet(folder / f"part-{file}.parquet")
    return folder


def run(text: Path, output: Path, **changes: Any) -> Outcome:
    """Twelve steps over the stream, a checkpoint every six."""
    fields = {
        "source": text,
        "streaming": "true",
        "shuffle_buffer": 8,
        "num_val_samples": 4,
        "validation_share": 0.2,
        "output_dir": output,
        "n_embd": 16,
        "n_positions": 32,
        "max_steps": 12,
        "batch_size": 2,
        "dataloader_num_workers": 2,
        "eval_steps": 6,
        "save_steps": 6,
        "sample_count": 0,
        "use_cpu": "true",
        "disable_tqdm": "true",
        **changes,
    }
    return train(*parse([f"--{name}={value}" for name, value in fields.items() if value is not None]))


@pytest.fixture(scope="module")
def done(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A finished run that asks questions; nobody changes its folder."""
    return run(text, tmp_path_factory.mktemp("runs") / "done", task="uniform", layout="two_stream")


def interrupted(done: Outcome, folder: Path) -> Path:
    """The run as a kill after step 11 leaves it."""
    shutil.copytree(done.folder, folder)
    shutil.rmtree(folder / "checkpoint-12")
    for file in ("README.md", "model.safetensors"):
        (folder / file).unlink()
    return folder


def test_a_resumed_run_has_the_blocks_and_questions_that_would_have_come(
    text: Path, done: Outcome, tmp_path: Path
) -> None:
    folder = interrupted(done, tmp_path / "again")
    again = run(text, folder, task="uniform", layout="two_stream", resume="true")
    first, second = (load_file(path / "model.safetensors") for path in (done.folder, folder))
    assert all(first[name].equal(second[name]) for name in first)
    assert again.eval_loss == done.eval_loss


@pytest.mark.long
def test_options_that_a_stream_does_not_have_are_told_of_and_change_no_run(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    contexts: list[Any] = []
    make = DataLoader.__init__

    def noted(self: Any, *args: Any, **options: Any) -> None:
        contexts.append(options.get("multiprocessing_context"))
        make(self, *args, **options)

    monkeypatch.setattr(DataLoader, "__init__", noted)
    idle = {"train_sampling_strategy": "sequential", "dataloader_drop_last": "true", "data_seed": 3}
    short = {"max_steps": 2, "save_steps": 1, "eval_steps": 2, "dataloader_num_workers": 1}
    done = run(text, tmp_path / "a", **short, **idle, dataloader_multiprocessing_context="spawn")
    assert "spawn" in contexts
    for name in idle:
        assert f"{name}: has no effect: a stream is read in its own order" in caplog.text
    shutil.rmtree(done.folder / "checkpoint-2")
    first = load_file(done.folder / "model.safetensors")
    # without them it is the same run, and it goes on
    run(text, done.folder, **short, resume="true")
    second = load_file(done.folder / "model.safetensors")
    assert all(first[name].equal(second[name]) for name in first)


def test_what_was_read_is_not_read_again(
    text: Path, done: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arbprob_hf.data.streaming._TOGETHER", 4)
    # a loader without workers reads in this process
    whole = run(text, tmp_path / "run", dataloader_num_workers=0, shuffle_buffer=2, batch_size=8)
    shutil.rmtree(whole.folder / "checkpoint-12")
    read: list[int] = []
    batches = Streamed.batches

    def noted(self: Streamed, order: Any = None, **options: Any) -> Any:
        for place, row, texts in batches(self, order, **options):
            read.append(place if not options.get("validation") else -1)
            yield place, row, texts

    monkeypatch.setattr(Streamed, "batches", noted)
    again = run(text, whole.folder, dataloader_num_workers=0, shuffle_buffer=2, batch_size=8, resume="true")
    trained = [place for place in read if place >= 0]
    state = json.loads((whole.folder / "checkpoint-6" / "readers.json").read_text())["states"][0]
    assert trained[0] == state["shares"][0]["start"][1] > 0
    assert again.eval_loss == whole.eval_loss


def test_a_stream_goes_on_with_other_workers_and_says_so(
    text: Path, done: Outcome, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = interrupted(done, tmp_path / "run")
    run(text, folder, task="uniform", layout="two_stream", resume="true", dataloader_num_workers=1)
    assert "checkpoint-6 goes on with other readers of the stream: they share the rest of this reading" in caplog.text
    saved = json.loads((folder / "checkpoint-12" / "readers.json").read_text())
    assert (saved["processes"], saved["workers"], len(saved["states"])) == (1, 1, 1)


@pytest.mark.long
def test_a_checkpoint_without_readers_is_read_up_to_and_refuses_other_workers(
    text: Path, done: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        # as an earlier version saved it
        patch.setattr(StreamPosition, "save", lambda self, checkpoint: None)
        run(text, folder, task="uniform", layout="two_stream")
    shutil.rmtree(folder / "checkpoint-12")
    same = dict(task="uniform", layout="two_stream", resume="true")
    message = "^dataloader_num_workers: checkpoint-6 was trained with 2, this run has 1: give the same to resume it"
    with pytest.raises(ValueError, match=message):
        run(text, folder, **same, dataloader_num_workers=1)
    assert run(text, folder, **same).eval_loss == done.eval_loss
    # both workers have made a batch since
    assert (folder / "checkpoint-12" / "readers.json").is_file()


@pytest.mark.parametrize(
    ("changes", "values"),
    [
        ({"shuffle_buffer": 9}, "8, this run has 9"),
        ({"min_document_length": 3}, "1, this run has 3"),
        ({"validation_share": 0.3}, "0.2, this run has 0.3"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_stream_in_another_order_is_refused_naming_the_option_and_both_values(
    text: Path, done: Outcome, tmp_path: Path, changes: dict[str, Any], values: str
) -> None:
    folder = interrupted(done, tmp_path / "run")
    (name,) = changes
    message = f"^{name}: checkpoint-6 was trained with {re.escape(values)}: give the same to resume it, or start from"
    with pytest.raises(ValueError, match=message) as refused:
        run(text, folder, task="uniform", layout="two_stream", resume="true", **changes)
    assert len(str(refused.value)) <= 300


@pytest.mark.parametrize(
    ("name", "before", "message"),
    [
        ("processes", 2, "processes: checkpoint-6 was trained with 2, this run has 1: give the same to resume it"),
        ("packing", False, "packing: checkpoint-6 was trained with False, this run has True: give the same"),
        ("source", "x", "source: checkpoint-6 was trained with x, this run has here: give the same to resume"),
        ("files", 3, "files: checkpoint-6 was trained with 3, this run has 2: give the same to resume it"),
        ("tokenizer", "0" * 64, r"tokenizer: .* with one of the tokens and rules 00000000, this run has one of the"),
        ("state of the text", "1" * 64, "state of the text: .* with files of the names, sizes and times of change 111"),
    ],
)
def test_each_part_of_a_stream_is_named(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str, before: Any, message: str
) -> None:
    record = record_of(tokenizer)
    saved = {**record, "text": "0" * 64, "stream": {**record["stream"], name: before}}
    write_record(saved, folder := checkpoint(tmp_path))
    with pytest.raises(ValueError, match=f"^{message}"):
        compare(folder, record)


def test_a_stream_that_was_noted_without_its_parts_is_reported_by_its_digest(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    record = record_of(tokenizer)
    saved = {name: value for name, value in record.items() if name != "stream"}
    write_record(saved, folder := checkpoint(tmp_path))
    compare(folder, record)
    write_record({**saved, "text": "0" * 64}, folder)
    with pytest.raises(
        ValueError, match=r"^text: checkpoint-6 was trained with a stream of here \(00000000\), this run"
    ):
        compare(folder, record)


def test_a_mask_that_differs_is_named_before_a_part_of_the_stream(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    record = {**record_of(tokenizer), "mask": "causal"}
    saved = {**record, "mask": "full", "text": "0" * 64, "stream": {**record["stream"], "packing": False}}
    write_record(saved, folder := checkpoint(tmp_path))
    with pytest.raises(ValueError, match="^mask: checkpoint-6 was trained with full, this run has causal: give"):
        compare(folder, record)


@pytest.mark.parametrize("blocks", [None, 3], ids=["stream", "packed"])
def test_a_new_commit_of_the_data_set_is_named_with_the_option_that_goes_on_with_the_old_one(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, blocks: int | None
) -> None:
    record = {**record_of(tokenizer), "blocks": blocks, "source_revision": "b" * 40}
    write_record({**record, "text": "0" * 64, "source_revision": "a" * 40}, folder := checkpoint(tmp_path))
    message = f"^source_revision: checkpoint-6 was trained with commit {'a' * 40} of the data set, this run would read "
    with pytest.raises(
        ValueError, match=f"{message}bbbbbbbb, a new commit: add --source_revision {'a' * 40} to"
    ) as caught:
        compare(folder, record)
    assert len(str(caught.value)) <= 300


def checkpoint(folder: Path) -> Path:
    """An empty folder of a checkpoint's name."""
    (folder / "checkpoint-6").mkdir()
    return folder / "checkpoint-6"


def record_of(tokenizer: PreTrainedTokenizerFast, *, packing: bool = True) -> dict[str, Any]:
    """The record of a small stream."""
    documents = Dataset.from_dict({"text": ["a", "b"]}).to_iterable_dataset(num_shards=2)
    text = Streamed(documents, "here", revision="f" * 64)
    blocks = StreamedBlocks(text, tokenizer, block_size=8, seed=0, packing=packing)
    return {**describe_stream(blocks, "here", workers=0), "initializer_range": 0.02}


def test_an_unpacked_stream_from_before_ends_were_targets_is_not_gone_on_with(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    record = record_of(tokenizer, packing=False)
    values = [value for name, value in record["stream"].items() if name not in ("ends", "tokenizer")]
    rules = [tokenizer.backend_tokenizer.to_str(), tokenizer.eos_token_id]
    before = hashlib.sha256(json.dumps([*values, *rules]).encode()).hexdigest()
    stream = {name: value for name, value in record["stream"].items() if name != "ends"}
    write_record({**record, "text": before, "stream": stream}, folder := checkpoint(tmp_path))
    with pytest.raises(ValueError, match="^text: checkpoint-6 was trained with a stream of here"):
        compare(folder, record)


def test_another_tokenizer_or_split_is_another_stream(tokenizer: PreTrainedTokenizerFast) -> None:
    def digest(tokenizer: PreTrainedTokenizerFast, shards: int = 2, workers: int = 0) -> str:
        documents = Dataset.from_dict({"text": ["a", "b", "c"]}).to_iterable_dataset(num_shards=shards)
        blocks = StreamedBlocks(Streamed(documents, "here"), tokenizer, block_size=8, seed=0)
        return str(describe_stream(blocks, "here", workers=workers)["text"])

    other = copy.deepcopy(tokenizer)
    other.add_tokens(["another"])
    assert digest(tokenizer) == digest(tokenizer, workers=1)
    assert len({digest(tokenizer), digest(other), digest(tokenizer, shards=3), digest(tokenizer, workers=2)}) == 4


def test_what_fails_in_a_worker_is_reported_in_one_line(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for number in range(2):
        whole = (text / f"part-{number}.parquet").read_bytes()
        # the first one is read to the end for validation, which stops there
        (tmp_path / f"part-{number}.parquet").write_bytes(whole if number == 0 else whole[:-40] + bytes(40))
    with pytest.raises(SystemExit), exit_on_user_error("train"):
        run(tmp_path, tmp_path / "run", num_val_samples=1)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("train: error: source ")
    assert "part-1.parquet' cannot be read as parquet: " in line
    assert "Traceback" not in line
    assert len(line) < 400


def test_the_card_and_the_record_say_that_it_was_a_stream(done: Outcome) -> None:
    card = (done.folder / "README.md").read_text(encoding="utf-8")
    assert "a stream of blocks of 32 tokens" in card
    assert "epochs)" not in card
    assert (done.folder / "logs" / "mask.png").is_file()
    assert ", streamed |" in card
    record = json.loads((done.folder / "checkpoint-12" / "run.json").read_text())
    assert record["blocks"] is None
    assert "streamed" in record["source"]


@pytest.mark.parametrize("held", ["its split validation", "documents held out of it"])
def test_a_card_says_what_its_text_stands_for(held: str) -> None:
    text = f"Salesforce/wikitext wikitext-2-raw-v1, streamed; validation on {held}"
    note = " (wikimedia/wikipedia 20231101.en was unavailable; some/thing was unavailable)"
    found = [_source(SimpleNamespace(source=source)) for source in (text, text + note)]  # type: ignore[arg-type]
    assert found == [text.partition(";")[0], text.partition(";")[0] + note]


@pytest.mark.long
@pytest.mark.parametrize("streaming", ["true", "false"])
def test_what_was_used_in_place_of_wikipedia_is_recorded(tmp_path: Path, streaming: str) -> None:
    # the tests are offline
    samples, buffer = (None, 8) if streaming == "true" else (8, None)
    fields = dict(
        source="wikipedia", streaming=streaming, num_train_samples=samples, shuffle_buffer=buffer, save_steps=12
    )
    run(tmp_path, tmp_path / "run", **fields)
    missing = "(wikimedia/wikipedia 20231101.en was unavailable; Salesforce/wikitext wikitext-2-raw-v1 was unavailable)"
    assert missing in (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert missing in json.loads((tmp_path / "run" / "checkpoint-12" / "run.json").read_text())["source"]
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert card.data.datasets is None


@pytest.mark.long
def test_processes_that_found_different_texts_stop(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arbprob_hf.training.run.gather_object", lambda own: [*own, "what another process found"])
    with pytest.raises(ValueError, match="^source: processes found different texts, local text .* and what another"):
        run(text, tmp_path / "run")


def test_a_stream_needs_a_number_of_steps(text: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="^max_steps: a stream has no end, so training needs one; give a number of"):
        run(text, tmp_path / "run", max_steps=None)
