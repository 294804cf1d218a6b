"""The functions of the model that decide who sees whom, by file."""

LEAVES = "allowed tiles"
NODES = "allowed written tiles"


def _methods(kinds: str, names: str) -> list[str]:
    return [f"{kind}.{name}" for kind in kinds.split() for name in names.split()]


TARGETS: dict[str, list[str]] = {
    "patterns_arbprob": [
        *_methods("Causal Window Prefix Sinks Dilated Strided", LEAVES),
        *("_distances", "_has_multiple", "_all_multiples"),
    ],
    "blocks_arbprob": [*_methods("Blocks", LEAVES), *_methods("BlockDiffusion", "allowed tiles _block _copies")],
    "heads_arbprob": [*_methods("Heads", "allowed written tiles"), "_shares", "_united"],
    "tables_arbprob": [*_methods("Documents Padding Order Tree", LEAVES), "_walk", "_at"],
    "masking_arbprob": [
        *_methods("And Or Not", NODES),
        *("Shifted.allowed", "Dense.allowed", "Dense.written", "Dense.tiles", "Dense._table", "_by_tile"),
    ],
    "tiling_arbprob": ["Grid.indices", *_methods("Tiling", "slots counted_from _extremes")],
    "resolving_arbprob": [
        *("Sizes.filled", "Sizes.grid", "resolve_mask", "to_dense", "is_causal", "is_open"),
        *("_split_attention_mask", "_keep", "_table", "_order", "_restarts", "_starts", "_padded"),
    ],
    "continuing_arbprob": _methods("Continued", NODES),
    "plans_arbprob": ["EagerPlan.attend", "additive_plan", "zero_empty_rows", "_with_self"],
    "structure_arbprob": [
        *("sdpa_plan", "_structured", "_is_causal_throughout", "_tiled", "_regions", "_alike", "_runs"),
        *("_grid", "_filled", "_sorted", "_take"),
    ],
    "tiled_arbprob": ["_Recomputed.backward", "_own", "_cut", "_Totals.add"],
    "attention_arbprob": ["_eager_plan"],
    "modeling_arbprob": ["ArbProbModel._sizes", "ArbProbModel._layer_plans", "ArbProbAttention.forward"],
}
