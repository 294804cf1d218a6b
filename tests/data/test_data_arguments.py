"""DataArguments refuses values outside their range, naming the field."""

import pytest

from arbprob_hf.data import DataArguments


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("source", "", "source must be a non-empty text, got ''"),
        ("text_column", None, "text_column must be a non-empty text, got None"),
        ("tokenizer", 3, "tokenizer must be a non-empty text, got 3"),
        ("validation_share", 0, "validation_share must lie between 0 and 1, both excluded, got 0"),
        ("validation_share", 1.0, r"validation_share must lie between 0 and 1, both excluded, got 1\.0"),
        ("validation_share", True, "validation_share must lie between 0 and 1, both excluded, got True"),
        (
            "validation_share",
            float("nan"),
            "validation_share must lie between 0 and 1, both excluded, got nan",
        ),
        ("source_revision", "", "source_revision must be a branch, a tag or a commit of a data set, or none for the"),
        ("source_revision", 3, "source_revision must be a branch, .*, or none for the newest, got 3"),
        ("block_size", 1, "block_size: expected an integer of at least 2, got 1"),
        ("block_size", 12.5, r"block_size: expected an integer of at least 2, got 12\.5"),
        ("num_train_samples", 0, "num_train_samples: expected an integer of at least 1, got 0"),
        ("num_val_samples", True, "num_val_samples: expected an integer of at least 1, got True"),
        ("validation_split", "train", "validation_split must differ from train_split, both are 'train'"),
    ],
)
def test_a_value_outside_its_range_is_refused(field: str, value: object, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{message}") as refused:
        DataArguments(**{field: value})
    assert len(str(refused.value)) <= 300


def test_the_defaults_need_no_network_and_no_file() -> None:
    arguments = DataArguments()
    assert (arguments.source, arguments.tokenizer) == ("embedded", "gpt2")


def test_a_buffer_without_a_stream_is_refused() -> None:
    with pytest.raises(
        ValueError, match="^shuffle_buffer is 64, but only a stream has one: .*; give streaming: true, or"
    ):
        DataArguments(shuffle_buffer=64)
    # what a file says that is written for both
    assert DataArguments(shuffle_buffer=10_000, streaming=False).shuffle_buffer == 10_000
    assert DataArguments(shuffle_buffer=64, streaming=True).shuffle_buffer == 64


def test_processes_that_tokenise_beforehand_are_refused_for_a_stream() -> None:
    with pytest.raises(
        ValueError, match="^preprocessing_num_workers is 2, but a stream is tokenised .*; give dataload"
    ):
        DataArguments(streaming=True, preprocessing_num_workers=2)


@pytest.mark.parametrize("name", ["source_config", "source_revision"])
@pytest.mark.parametrize("source", ["embedded", __file__], ids=["embedded", "file"])
def test_what_names_a_state_of_a_data_set_is_refused_of_local_text_when_it_is_given(name: str, source: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} 'main' is for data sets by name; source .* has none, leave it out"):
        DataArguments(source=source, **{name: "main"})


@pytest.mark.parametrize("value", ["x", 12.5, True])
def test_a_wrong_type_of_an_integer_is_a_type_error(value: object) -> None:
    with pytest.raises(TypeError, match=r"^block_size: expected an integer of at least 2, got "):
        DataArguments(block_size=value)
