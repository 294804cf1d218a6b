"""Old name of `arbprob_hf.analysis.leakage`."""

from . import stand_in

stand_in(__name__, "arbprob_hf.analysis.leakage")
