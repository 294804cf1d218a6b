"""Text to batches: sources, tokenizers, packing, collating."""

from arbprob_hf.data.arguments import DataArguments
from arbprob_hf.data.blocks import Blocks, load_blocks
from arbprob_hf.data.collating import BlockCollator
from arbprob_hf.data.streaming import StreamedBlocks
from arbprob_hf.data.tokenizing import load_tokenizer

__all__ = ["BlockCollator", "Blocks", "DataArguments", "StreamedBlocks", "load_blocks", "load_tokenizer"]
