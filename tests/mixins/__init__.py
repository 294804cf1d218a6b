"""transformers' own test mixins, run on the classes of this package and on stock GPT-2."""
