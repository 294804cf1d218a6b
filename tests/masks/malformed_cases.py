"""The table of malformed inputs, argument by argument."""

import torch

from arbprob_hf import Mask, causal, documents, order, padding
from tests.masks.oracles import VOCABULARY, random_ids
from tests.masks.refusals import CASES, B, Case, D, H, T, config, forward, generate, together

ones3, ones4 = torch.ones(B, T, T), torch.ones(B, H, T, T)
tril = ones3.tril()
nothing = torch.zeros(B, T, T)
lowest = torch.finfo(torch.float32).min

for _argument in ("attention_mask", "mask"):
    forward(
        _argument,
        "expected only 0 and 1",
        minus_ten_thousand=(1 - tril) * -1e4,
        finfo_min_beside_ones=tril + (1 - tril) * lowest,
        minus_infinity_beside_a_bias=(tril / 2).masked_fill(tril == 0, float("-inf")),
        nan=tril * float("nan"),
        infinity=ones3 * float("inf"),
        two=tril.long() * 2,
        minus_one=-tril.long(),
        a_half=tril / 2,
        probabilities=ones3.softmax(-1),
        bytes_of_255=(tril * 255).to(torch.uint8),
    )
    forward(
        _argument,
        "all zeros in torch\\.b?float",
        zeros=nothing,
        zeros_bf16=nothing.bfloat16(),
        zeros_per_head=ones4 * 0,
    )
    forward(
        _argument,
        "expected shape .* = \\(2, ",
        too_few_queries=ones3[:, 1:],
        too_few_keys=ones3[:, :, 1:],
        too_many_keys=torch.ones(B, T, T + 1),
        another_batch=torch.ones(3, T, T),
        another_batch_per_head=torch.ones(3, H, T, T),
        another_number_of_heads=torch.ones(B, 3, T, T),
        heads_in_place_of_batch=torch.ones(4, T, T),
        short_per_head=ones4[..., :-1],
    )
    forward(_argument, "dimensions, got shape", one_dimension=torch.ones(T), five=ones4[None], scalar=torch.tensor(1.0))
    forward(_argument, "at least one element", empty=torch.ones(0, T, T))
    forward(_argument, "expected a dense tensor", complex=ones3.cfloat(), sparse=tril.to_sparse())
    forward(
        _argument,
        "expected a tensor",
        nested_list=tril.tolist(),
        numpy=tril.numpy(),
        integer=1,
        truth=True,
        bytes=b"causal",
        function=lambda b, h, q, k: k <= q,
        list_of_texts=["causal", "causal"],
        mapping={"full": True},
        pattern_without_call=causal,
    )
    forward(
        _argument,
        "expected device cpu",
        meta=ones3.to("meta"),
        meta_bool=ones3.bool().to("meta"),
        meta_per_head=ones4.to("meta"),
    )

for _argument in ("attention_mask", "mask"):
    # text is read by Mask.parse, which knows it as a mask, whichever argument brought it
    together("mask", "mask: unknown pattern", f"misspelt text as {_argument}", **{_argument: "casual"})
    together("mask", "mask: cannot read", f"half a text as {_argument}", **{_argument: "causal &"})
    together("mask", "mask: unexpected '\\['", f"python as {_argument}", **{_argument: "[causal]"})
    leaf = causal() & Mask.of(torch.ones(4, 4))
    together("mask", "tensor of shape .* does not fit", f"short tensor leaf as {_argument}", **{_argument: leaf})
    leaf = causal() & Mask.of(torch.ones(9, 9))
    together("mask", "tensor of shape .* does not fit", f"long tensor leaf as {_argument}", **{_argument: leaf})

forward(
    "attention_mask",
    "expected shape \\(batch, keys\\) = \\(2, 6\\)",
    one_row_for_all=torch.ones(1, T),
    one_row_too_many=torch.ones(3, T),
    one_key_too_few=torch.ones(B, T - 1),
    one_key_too_many=torch.ones(B, T + 1),
    empty_padding=torch.ones(0, 0),
)
forward("attention_mask", "pass it as mask=", queries_by_keys=torch.ones(T, T), queries_by_keys_bool=tril[0].bool())
forward(
    "attention_mask", "expected only 0 and 1", padding_of_two=torch.ones(B, T) * 2, additive=torch.ones(B, T) * lowest
)
forward("attention_mask", "expected only 0 and 1", padding_of_nan=torch.ones(B, T) * float("nan"))
forward("attention_mask", "all zeros", padding_of_zeros=torch.zeros(B, T))
forward("attention_mask", "expected device cpu", padding_on_meta=torch.ones(B, T, device="meta"))
forward("attention_mask", "expected a dense tensor", complex_padding=torch.ones(B, T).cfloat())
forward("mask", "expected shape \\(queries, keys\\)", wrong_square=torch.ones(5, 5))
forward("mask", "which tokens exist goes in as attention_mask=", padding=torch.ones(B, T))

together("mask", "combine them", "with a 3-D attention_mask", attention_mask=ones3, mask="causal")
together("mask", "combine them", "with a text attention_mask", attention_mask="full", mask=ones3)
together("attention_mask", "pass it as mask=", "3-D with ranks", attention_mask=ones3, ranks=random_ids(B, T))
together("limits", "given without ranks", "alone", limits=random_ids(B, T))

ids = random_ids(B, T)
for _argument in ("ranks", "document_ids"):
    forward(_argument, "expected an integer tensor", float=ids.float(), bool=ids > 3, list=ids.tolist(), text="0")
    forward(
        _argument,
        "expected shape \\(batch, tokens\\) = \\(2, 6\\)",
        one_row=ids[:1],
        one_dimension=ids[0],
        short=ids[:, 1:],
    )
    forward(_argument, "expected device cpu", meta=ids.to("meta"))
together("limits", "expected an integer tensor", "float", ranks=ids, limits=ids.float())
together("limits", "expected shape", "short", ranks=ids, limits=ids[:, 1:])

bias = torch.zeros(B, H, T, T)
forward(
    "attention_bias", "expected a float tensor", bool=bias.bool(), integer=bias.long(), list=bias.tolist(), text="alibi"
)
forward(
    "attention_bias",
    "expected shape \\(batch, heads, queries, keys\\)",
    three_dimensions=bias[0],
    another_number_of_heads=torch.zeros(B, 3, T, T),
    short=bias[..., 1:],
)
forward("attention_bias", "expected finite", minus_infinity=bias - float("inf"), nan=bias * float("nan"))
forward("attention_bias", "expected device cpu", meta=bias.to("meta"))

forward("position_ids", "expected an integer", float=torch.rand(1, T), list=[[0] * T], bool=ids > 3)
forward(
    "position_ids",
    "expected shape",
    one_dimension=torch.arange(T),
    short=ids[:, 1:],
    another_batch=torch.ones(3, T).long(),
)
forward("position_ids", "n_positions", beyond_the_table=torch.arange(T)[None] + 45, negative=torch.arange(T)[None] - 1)
forward("position_ids", "expected device cpu", meta=torch.arange(T, device="meta")[None])

for _argument in ("labels", "shift_labels"):
    forward(
        _argument, "expected a tensor of torch.int64", float=ids.float(), bool=ids > 3, list=ids.tolist(), text="ids"
    )
    forward(_argument, "expected shape", short=ids[:, 1:], long=ids.repeat(1, 2), flat=ids[0], one_row=ids[:1])
forward("labels", "expected -100 or 0 to 30", beyond_the_vocabulary=ids + VOCABULARY, another_ignored_index=ids * 0 - 1)

forward("past_key_values", "expected a transformers Cache", legacy_tuple=((torch.ones(B, H, 1, 8),) * 2,), text="cache")

for _name, _ids, _words in [
    ("beyond the vocabulary", ids + VOCABULARY, "expected 0 to 30"),
    ("negative", ids - VOCABULARY, "expected 0 to 30, got -"),
    ("float", ids.float(), "expected dtype torch.int64"),
    ("bool", ids > 3, "expected dtype torch.int64"),
    ("flat", ids[0], "expected shape"),
    ("three dimensions", ids[None], "expected shape"),
    ("no tokens", ids[:, :0], "not empty"),
    ("no rows", ids[:0], "not empty"),
    ("list", ids.tolist(), "expected an integer tensor"),
    ("text", "hello", "expected an integer tensor"),
    ("none", None, "expected exactly one of them, got none"),
]:
    CASES.append(Case(f"input_ids: {_name}", "input_ids", _words, lambda model, _, v=_ids: model(v)))
CASES.append(Case("too long", "n_positions", "shorten the input", lambda model, _: model(random_ids(1, 49))))

embeds = torch.rand(B, T, D)
together("inputs_embeds", "exactly one of them, got both", "with input_ids", inputs_embeds=embeds)
for _name, _embeds, _words in [
    ("another width", torch.rand(B, T, D + 1), "n_embd=16"),
    ("two dimensions", embeds[0], "expected shape"),
    ("no tokens", embeds[:, :0], "expected shape"),
    ("integers", embeds.long(), "expected a float tensor"),
    ("list", embeds.tolist(), "expected a float tensor"),
    ("complex", embeds.cfloat(), "expected a float tensor"),
    ("double", embeds.double(), "expected the dtype of the weights, torch.float32, got torch.float64"),
]:
    together("inputs_embeds", _words, _name, input_ids=None, inputs_embeds=_embeds)

for _argument in ("attention_mask", "mask"):
    generate(_argument, "expected a tensor", list=tril.tolist(), numpy=tril.numpy(), integer=3)
    generate(_argument, "expected", one_dimension=torch.ones(T))
generate("mask", "for this prompt", another_square=torch.ones(5, 5), another_batch=torch.ones(3, T, T))
generate("mask", "expected only 0 and 1", finfo_min_beside_ones=tril + (1 - tril) * lowest)
generate("mask", "unknown pattern", misspelt="casual")
for _argument in ("ranks", "limits", "document_ids", "attention_bias"):
    generate(_argument, "not taken by generate", given=ids)

config("vocab_size", "expected", negative=-1, zero=0, text="many", float=5.5, huge=10**12)
config("n_layer", "expected", five_million=5_000_000, truth=True, none=None)
config("n_head", "expected", zero=0, list=[2])
config("n_embd", "multiple of n_head", odd=13)
config("n_positions", "expected", negative=-5, infinite=float("inf"))
config("attn_pdrop", "a probability", one=1.0, negative=-0.1, nan=float("nan"), text="0.1")
config("layer_norm_epsilon", "above 0", zero=0.0, infinite=float("inf"))
config("activation_function", "expected one of gelu_new", unknown="swish2")
config("use_cache", "true or false", text="yes")
config(
    "mask", "text of a mask or a list of texts", number=3, none=None, tensor=tril, pattern=causal(), mixed=["causal", 3]
)
config("mask", "one text or one per layer", too_few_layers=["causal"], no_layers=[])
config("n_layers", "did you mean n_layer", misspelt_field=3)

for _rule, _leaf in {
    "documents(ids)": documents(torch.zeros(B, 4).long()),
    "padding(keep)": padding(torch.ones(3, T)),
    "order(rank)": order(torch.arange(4)),
    "order(limit)": order(torch.arange(T), torch.zeros(3, T).long()),
}.items():
    together(_rule, "2 rows \\(or 1\\) of 6 tokens", "of other sizes in mask", mask=causal() & _leaf)
