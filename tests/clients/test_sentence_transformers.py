"""sentence-transformers: our network embeds texts as GPT-2 does, whatever is padded, and comes back from its folder."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.networks import far

pytestmark = pytest.mark.long

TEXTS = ["who sees whom", "m", "a much longer sentence about masks"]


def embedder(folder: Path, pooling: str = "mean") -> Any:
    # imported here: it takes seconds, and these tests are left out of the quick run
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    trusted = {"trust_remote_code": True}
    network = Transformer(str(folder), model_kwargs=trusted, config_kwargs=trusted)
    size = network.get_embedding_dimension()
    return SentenceTransformer(modules=[network, Pooling(size, pooling_mode=pooling)], device="cpu")


def embedded(model: Any, batch_size: int = 3) -> torch.Tensor:
    return torch.from_numpy(model.encode(TEXTS, batch_size=batch_size, show_progress_bar=False))


@pytest.mark.parametrize("pooling", ["mean", "lasttoken"])
def test_texts_are_embedded_as_gpt2_embeds_them(folders: dict[str, Path], pooling: str) -> None:
    ours = embedder(folders["ours"], pooling)
    assert far(embedded(ours), embedded(embedder(folders["theirs"], pooling))) < 1e-5
    # the padding of the others in a batch changes nothing
    assert far(embedded(ours), embedded(ours, batch_size=1)) < 1e-5


def test_an_embedder_comes_back_from_its_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    ours = embedder(folders["windowed"])
    assert far(embedded(ours), embedded(embedder(folders["theirs"]))) > 0.01
    ours.save(str(tmp_path / "saved"))
    again = SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=True, device="cpu")
    assert far(embedded(again), embedded(ours)) == 0
