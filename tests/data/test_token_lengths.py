"""How many bytes of text tokens stand for."""

from tokenizers import Tokenizer, models

from arbprob_hf.data import load_tokenizer
from arbprob_hf.data.tokenizer import token_bytes


def test_bytes_of_tokens_are_those_of_their_text() -> None:
    tokenizer = load_tokenizer("gpt2")
    tokenizer.add_tokens(["\u00e9t\u00e9"])
    lengths = token_bytes(tokenizer.backend_tokenizer, len(tokenizer) + 3)
    for text in ("Hello world", " na\u00efve \u2603\U0001f600 caf\u00e9\n\n\tx", "un \u00e9t\u00e9"):
        assert lengths[tokenizer(text).input_ids].sum() == len(text.encode())
    assert lengths[tokenizer.eos_token_id] == 0
    assert lengths[-3:].tolist() == [0, 0, 0]


def test_other_tokenizers_do_not_say_their_bytes() -> None:
    assert token_bytes(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), 1) is None
