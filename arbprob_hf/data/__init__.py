"""Text to batches: sources, tokenizers, packing, collating."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

# for type checkers and editors; the options of a run are read from here before torch is imported
if TYPE_CHECKING:
    from .arguments import DataArguments
    from .collators import BlockCollator
    from .dataset import Blocks, load_blocks
    from .streaming import StreamedBlocks
    from .tokenizer import load_tokenizer

__all__ = ["BlockCollator", "Blocks", "DataArguments", "StreamedBlocks", "load_blocks", "load_tokenizer"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            ".arguments": ("DataArguments",),
            ".collators": ("BlockCollator",),
            ".dataset": ("Blocks", "load_blocks"),
            ".streaming": ("StreamedBlocks",),
            ".tokenizer": ("load_tokenizer",),
        },
    )
