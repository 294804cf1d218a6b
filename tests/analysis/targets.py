"""The functions of the model that decide who sees whom, by file below `arbprob_hf/model/`."""

LEAVES = "allowed tiles"
NODES = "allowed evaluate tiles"


def _methods(kinds: str, names: str) -> list[str]:
    return [f"{kind}.{name}" for kind in kinds.split() for name in names.split()]


TARGETS: dict[str, list[str]] = {
    "masks/patterns": [
        *_methods("Causal Window Prefix Sinks Dilated Strided Blocks", LEAVES),
        *("_distances", "_has_multiple", "_all_multiples"),
        *_methods("BlockDiffusion", "allowed tiles _block _copies"),
        *_methods("Heads", NODES),
        *("_shares", "_united"),
    ],
    "masks/tensors": [*_methods("Documents Padding Order Tree", LEAVES), "_walk", "_at"],
    "masks/mask": [
        *_methods("And Or Not", NODES),
        *("Shifted.allowed", "Dense.allowed", "Dense.evaluate", "Dense.tiles", "Dense._table", "_by_tile"),
    ],
    "masks/tiles": [
        "Grid.indices",
        *_methods("Tiling", "slots counted_from _extremes"),
        "Sizes.__post_init__",
        "Sizes.grid",
    ],
    "masks/arguments": [
        *("resolve_mask", "_split_attention_mask", "_keep", "_table", "_order", "_restarts", "_starts", "_padded"),
    ],
    "masks/continuation": _methods("Continued", NODES),
    "attention/plan": [
        *("EagerPlan.attend", "additive_plan", "zero_empty_rows", "_with_self", "to_dense", "unmasked_plan"),
    ],
    "attention/sdpa": [
        *("structured_plan", "_structured", "_is_causal_throughout", "_tiled", "_regions", "_alike", "_runs"),
        *("_grid", "_filled", "_sorted", "_take"),
    ],
    "attention/tiled": ["_Recomputed.backward", "_own", "_cut", "_Totals.add"],
    "attention/backends": ["_eager_plan", "_sdpa_plan"],
    "modeling_arbprob": ["ArbProbModel._sizes", "ArbProbModel._layer_plans", "ArbProbAttention.forward"],
}
