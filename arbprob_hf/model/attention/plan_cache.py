"""Plans that are kept: a mask that its text says in full is planned once for a length, a dtype and a device."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import fields, is_dataclass, replace

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from ..masks.custom import BUILT_IN
from ..masks.mask import And, Mask, Not, Or
from ..masks.tiles import Sizes
from .plan import Plan, is_transformed

# of all kept plans together, on all devices
MOST_PLANS = 64
MOST_BYTES = 128 * 2**20

# a rule of a user's may read anything, and a class of one's own may be anything: they are planned every time
_WORDS = frozenset({And, Or, Not, *(kind for kind in BUILT_IN if not kind.takes_tensors)})


class PlanCache:
    """The plans used last, at most `MOST_PLANS` of them and `MOST_BYTES`; threads may share it."""

    def __init__(self) -> None:
        self._plans: OrderedDict[Hashable, tuple[Plan, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def find(self, key: Hashable, make: Callable[[], Plan]) -> Plan:
        """The plan kept under `key`, or else what `make` makes, which is kept unless it is too large."""
        with self._lock:
            if key in self._plans:
                self._plans.move_to_end(key)
                return self._plans[key][0]
        # not under the lock: another thread may plan the same meanwhile, and both plans are right
        plan = make()
        size = sum(_sizes_of(plan))
        if size <= MOST_BYTES:
            with self._lock:
                self._bytes += size - self._plans.pop(key, (plan, 0))[1]
                self._plans[key] = plan, size
                while len(self._plans) > MOST_PLANS or self._bytes > MOST_BYTES:
                    self._bytes -= self._plans.popitem(last=False)[1][1]
        return plan

    def clear(self) -> None:
        """Keep nothing."""
        with self._lock:
            self._plans.clear()
            self._bytes = 0

    def __len__(self) -> int:
        return len(self._plans)


PLANS = PlanCache()


def kept_plan(mask: Mask, sizes: Sizes, kind: Hashable, make: Callable[[Sizes], Plan]) -> Plan:
    """The plan that `make` makes for a mask and sizes, made once where the mask is a text's and nothing is cached yet.

    Args:
        kind: what else `make` depends on: the backend and the dtype.
    """
    if not _is_text(mask) or not _is_plain_pass(sizes):
        return make(sizes)
    # such a mask treats all rows alike, and its plan holds for any number of them
    one_row = replace(sizes, batch=1)
    key = mask, one_row, kind, _stream(sizes.device)

    def make_once() -> Plan:
        # whoever comes next may want gradients, which tensors of inference mode refuse
        with torch.inference_mode(False), torch.no_grad():
            return make(one_row)

    return PLANS.find(key, make_once)


def _is_text(mask: Mask) -> bool:
    return type(mask) in _WORDS and all(map(_is_text, mask.operands()))


def _is_plain_pass(sizes: Sizes) -> bool:
    """Whether a plan made now outlives the pass: its tensors are tensors, of memory that nobody else disposes of."""
    if not isinstance(sizes.offset, int) or sizes.offset != 0 or sizes.q_len == 1 or sizes.device.type == "meta":
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or is_transformed():
        return False
    if sizes.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return False
    # a mode may hand out tensors of its own
    return torch._C._len_torch_dispatch_stack() == 0 and type(torch.empty(0, device=sizes.device)) is Tensor


def _stream(device: torch.device) -> Hashable:
    # tensors made on one stream of an accelerator may not be there yet for another
    if device.type == "cpu" or not torch.accelerator.is_available():
        return None
    return torch.accelerator.current_stream(device).stream_id


def _sizes_of(value: object) -> Iterator[int]:
    # bytes of the tensors in a plan
    if isinstance(value, Tensor):
        yield value.numel() * value.element_size()
    elif isinstance(value, BlockMask):
        yield from _sizes_of(value.as_tuple())
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _sizes_of(part)
    elif is_dataclass(value):
        for one in fields(value):
            yield from _sizes_of(getattr(value, one.name))
