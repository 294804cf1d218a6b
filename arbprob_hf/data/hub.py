"""Whether the Hub can be asked at all, without the minute that its client alone would try."""

from huggingface_hub import constants
from huggingface_hub.utils import get_session

# seconds that a Hub which does not answer may cost
PROBE_SECONDS = 3.0


def hub_answers() -> bool:
    """Whether the Hub answers within PROBE_SECONDS; False in offline mode."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    except Exception:
        # the client's exceptions differ from one huggingface_hub to the next; each means no answer
        return False
    return True
