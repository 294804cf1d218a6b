"""Old name of `arbprob_hf.analysis.audit.audit`."""

from . import stand_in

stand_in(__name__, "arbprob_hf.analysis.audit.audit")
