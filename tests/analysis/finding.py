"""Whether an audit fails, without the rest of it: one finding decides, whatever the probes after it would say."""

from typing import Any

from torch import nn

from arbprob_hf import audit
from arbprob_hf.analysis.audit import checks as auditing
from arbprob_hf.analysis.audit.audited_model import AuditedModel
from arbprob_hf.analysis.audit.cases import AuditCase, Masks
from arbprob_hf.analysis.audit.checks import Probe
from arbprob_hf.analysis.audit.report import PASSED, Outcome


class _FoundError(BaseException):
    # no Exception: those the audit takes for findings of its own
    pass


def is_found(model: nn.Module, mask: Masks = None, **options: Any) -> bool:
    """`not audit(model, mask, **options).passed`, by the audit itself, stopped at its first finding.

    The probes are those that are shipped, the cheap ones at the end of the list first.
    """
    shipped = auditing.PROBES
    auditing.PROBES = tuple(map(_stopping, reversed(shipped)))
    try:
        return not audit(model, mask, **options).passed
    except _FoundError:
        return True
    finally:
        auditing.PROBES = shipped


def _stopping(probe: Probe) -> Probe:
    def run(subject: AuditedModel, setting: AuditCase) -> Outcome:
        try:
            outcome = probe.run(subject, setting)
        except Exception as error:
            raise _FoundError from error
        if outcome.verdict != PASSED:
            raise _FoundError
        return outcome

    return probe._replace(run=run)
