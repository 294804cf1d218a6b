"""The way of a finished run to the Hub: its model card, what of it may travel, the proof that it loads, the upload."""

from .card import CardFacts, ModeRow, template, write_card
from .hub import Published, publish

__all__ = ["CardFacts", "ModeRow", "Published", "publish", "template", "write_card"]
