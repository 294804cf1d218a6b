"""Text to batches: sources, tokenizers, packing, collating."""

from .arguments import DataArguments
from .collators import BlockCollator
from .dataset import Blocks, load_blocks
from .streaming import StreamedBlocks
from .tokenizer import load_tokenizer

__all__ = ["BlockCollator", "Blocks", "DataArguments", "StreamedBlocks", "load_blocks", "load_tokenizer"]
