"""Old name of `arbprob_hf.oracles.registry`."""

from . import stand_in

stand_in(__name__, "arbprob_hf.oracles.registry")
