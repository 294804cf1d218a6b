"""Sources of sequences whose conditional probabilities are known exactly, and networks scored against them."""
