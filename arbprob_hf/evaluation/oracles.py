"""Old name of `arbprob_hf.oracles.score`."""

from . import stand_in

stand_in(__name__, "arbprob_hf.oracles.score")
