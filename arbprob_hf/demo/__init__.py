"""The demo page: a text whose blanks a network fills, and its log-probabilities under any mask."""
