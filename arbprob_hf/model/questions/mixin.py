"""What can be asked of a network: log_prob, marginals, sample and infill, as methods that travel with its weights."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from ..configuration_arbprob import ArbProbConfig
from ..masks.patterns import Causal
from ..masks.text import check_integer, kind_of
from .blanks import Blanked, Infilled, Scored, answers_of, ask_blanks, read_answers, read_blanks
from .conditional import Conditional, Positions, ResolvedConditional
from .layouts import MASK_ID, Slots, is_chained, lay_out, lay_out_several
from .log_probs import token_log_probs, vocabulary_log_probs
from .sampling import Sampled, Sampler
from .shared_prefix import join

logger = logging.get_logger(__name__)


class QuestionMixin:
    """Questions P(x_target | x_given) put to a causal language model; mixed into it."""

    config: Any
    training: bool
    transformer: Any
    lm_head: Any
    device: Any

    @staticmethod
    def ask(
        given: Positions,
        target: Positions | None = None,
        order: Positions | str = "temporal",
        given_sees: str | None = None,
    ) -> Conditional:
        """A question, for those who have the network without the package: what `Conditional` makes."""
        return Conditional(given, target, order, given_sees)

    def log_prob(
        self, input_ids: Tensor, ask: Conditional | Sequence[Conditional], *, layout: str | None = None
    ) -> Tensor:
        """log P of each target token given the given ones and the targets asked before it, in one forward pass.

        Args:
            input_ids: long (B, T); tokens that are neither given nor asked have no influence at all.
            ask: the question, or several about the same text, which then share what they have in common.
            layout: how to put it; None for the way the network was trained, `config.layout`.

        Returns:
            (B, T), or (questions, B, T) for several: nats, 0 where nothing is asked; `.sum(-1)` is the joint log P of
            the targets. float32, or float64 for float64 weights; differentiable.

        Raises:
            ValueError, TypeError: the question cannot be, or cannot be put in this layout.
        """
        layout = self._layout(layout)
        several = isinstance(ask, Sequence)
        asks = list(ask) if isinstance(ask, Sequence) else [ask]
        if not asks:
            raise ValueError("ask: expected at least one question, got an empty list")
        questions = [self._settle(input_ids, one, layout, needs_answers=True) for one in asks]
        for question in questions:
            if not is_chained(layout) and bool((question.step > 1).any()):
                raise ValueError(
                    f"layout: {layout} has no joint probability of several targets; ask marginals(), or use another "
                    "layout"
                )
        numbers, rows, positions, hidden = self._read(lay_out_several(questions, layout), input_ids)
        nats = token_log_probs(self.lm_head, hidden, input_ids[rows, positions])
        scores = nats.new_zeros(len(questions), *input_ids.shape).index_put((numbers, rows, positions), nats)
        return scores if several else scores[0]

    def marginals(self, input_ids: Tensor, ask: Conditional, *, layout: str | None = None) -> Tensor:
        """log P(x_i | x_given) of every target by itself and every token of the vocabulary, in one forward pass.

        Args:
            input_ids, layout: as for `log_prob`; the tokens at the targets have no influence.

        Returns:
            (B, T, V) in nats; 0 where nothing is asked.
        """
        layout = self._layout(layout)
        question = self._settle(input_ids, ask, layout)
        if layout == "sigma":
            # its last given slot gets the first target, and the others would see it: each is a question of its own
            slots = lay_out_several(question.one_by_one(), layout)
            # the target's own slot, which nobody sees, holds some token: -1 would be none
            input_ids = input_ids.masked_fill(question.target.to(input_ids.device, non_blocking=True), 0)
        else:
            slots = [lay_out(question, layout, torch.zeros(input_ids.shape[0], dtype=torch.long))]
        _, rows, positions, hidden = self._read(slots, input_ids)
        nats = vocabulary_log_probs(self.lm_head, hidden)
        return nats.new_zeros(*input_ids.shape, nats.shape[1]).index_put((rows, positions), nats)

    @torch.no_grad()
    def sample(
        self,
        input_ids: Tensor,
        ask: Conditional,
        *,
        method: str = "sequential",
        layout: str | None = None,
        temperature: float = 1.0,
        width: int = 8,
        generator: torch.Generator | None = None,
    ) -> Sampled:
        """Fill the targets from the exact joint P(x_target | x_given); whatever `input_ids` holds there is ignored.

        Args:
            input_ids: long (B, T).
            method: `sequential`: one target a pass. `speculative`: drafts of the next targets at once, kept as far as
                they agree with the joint, two passes a round (Guo and Ermon 2025, arXiv:2504.20456). `fused`: drafts
                for every possible stop are made while those before are verified, one pass a round (layout two_stream).
                `auto`: round by round the one of these that fits how many drafts were kept so far. All have the same
                law and a cache, draft fewer targets where few drafts are kept, and never take more passes than there
                are targets.
            temperature: divides the logits of each step; 0 takes the likeliest token.
            width: the most targets that `fused` drafts ahead.
            generator: source of randomness on the device of `input_ids`, for tokens and for a random order; torch's own
                when None.

        Returns:
            `sequences` (B, T); `log_probs` (B, T), the network's own log P of each sampled token, whatever the
            temperature, as `log_prob` gives; `forward_passes`; `order` (B, T), in which the targets were asked.

        Raises:
            ValueError: what is asked cannot be, or logits to draw from are nan or infinite; -inf is what some may be.
        """
        if not isinstance(generator, torch.Generator | None):
            raise TypeError(f"generator: expected a torch.Generator, got {type(generator).__name__}")
        self._warn_of_dropout()
        layout = self._layout(layout)
        question = self._settle(input_ids, ask, layout, generator=generator)
        if not is_chained(layout):
            raise ValueError(f"layout: {layout} has no joint probability to sample from; use another layout")
        sampler = Sampler(self, question, layout, temperature=temperature, generator=generator)
        return sampler.run(input_ids, method, width=width)

    def infill(
        self,
        text: str | Tensor,
        tokenizer: Any = None,
        *,
        samples: int = 1,
        method: str = "sequential",
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        layout: str | None = None,
    ) -> list[Infilled] | Sampled:
        """Fill in blanks: `model.infill("The cat [M] on the [M:2]", tokenizer)`.

        Args:
            text: a text with blanks, `[M]` for one token and `[M:3]` for three; or ids, long (B, T), with -1 at the
                blanks and the start of the text at position 0.
            tokenizer: for a text, the one the network was trained with.
            samples: how often the text is filled in, independently.
            method, temperature, generator, layout: as for `sample`.

        Returns:
            For a text a list of `Infilled`, each with `text`, `answers` and `log_prob`; for ids what `sample` returns.
        """
        check_integer("samples", samples, low=1)
        options: dict[str, Any] = dict(method=method, temperature=temperature, generator=generator, layout=layout)
        if isinstance(text, Tensor):
            check_asked(self.config, text, Conditional([0]))
            ids = text.repeat_interleave(samples, 0)
            return self.sample(ids, ask_blanks(ids), **options)
        blanked = self._blanked(text, tokenizer)
        ids = blanked.tensor(self.device).expand(samples, -1)
        found = self.sample(ids, blanked.ask(), **options)
        joints = found.log_probs.sum(1).tolist()
        return [
            Infilled(str(tokenizer.decode(row[1:])), answers_of(row, blanked, tokenizer), joint)
            for row, joint in zip(found.sequences.tolist(), joints, strict=True)
        ]

    @torch.no_grad()
    def score_text(self, tokenizer: Any, text: str, answers: Any = None, *, top: int = 5) -> list[Scored]:
        """log P of candidates for the blanks of a text: `model.score_text(tokenizer, "The cat [M]", ["sat", "ran"])`.

        Args:
            text: a text with blanks, as for `infill`.
            answers: candidates: a text each where there is one blank, otherwise a tuple of texts, one a blank. None for
                the `top` likeliest tokens of a text with a single blank of one token.

        Returns:
            For each candidate, in the order given, its `log_prob` and that of each of its tokens.
        """
        blanked = self._blanked(text, tokenizer)
        self._warn_of_dropout()
        if answers is None:
            return self._likeliest(blanked, tokenizer, top)
        rows = read_answers(answers, len(blanked.blanks))
        ids = torch.tensor([blanked.filled(row, tokenizer) for row in rows], device=self.device)
        nats = self.log_prob(ids, blanked.ask())
        asked = torch.tensor(blanked.ids) == MASK_ID
        return [
            Scored(row, float(one.sum()), tuple(one[asked].tolist())) for row, one in zip(rows, nats.cpu(), strict=True)
        ]

    def _likeliest(self, blanked: Blanked, tokenizer: Any, top: int) -> list[Scored]:
        if blanked.ids.count(MASK_ID) > 1:
            raise ValueError(
                "answers: needed where more than one token is blank; give candidates, or sample them with infill"
            )
        check_integer("top", top, low=1, high=self.config.vocab_size)
        nats = self.marginals(blanked.tensor(self.device), blanked.ask())
        best = nats[0, blanked.blanks[0][0]].topk(top)
        return [
            Scored((str(tokenizer.decode([token])),), value, (value,))
            for value, token in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def _blanked(self, text: str, tokenizer: Any) -> Blanked:
        if not isinstance(text, str):
            advice = "; score_text takes the tokenizer before the text, infill after it" * isinstance(tokenizer, str)
            raise TypeError(f"text: expected a text with blanks, or ids as a tensor, got {type(text).__name__}{advice}")
        if not hasattr(tokenizer, "eos_token_id"):
            raise TypeError(
                f"tokenizer: a text needs the network's tokenizer, got {type(tokenizer).__name__}; pass it, or give "
                "ids with -1 at the blanks"
            )
        blanked = read_blanks(text, tokenizer)
        if max(blanked.ids) >= self.config.vocab_size:
            raise ValueError(
                f"tokenizer: gives ids up to {max(blanked.ids)}, the network knows {self.config.vocab_size} tokens; "
                "use the tokenizer it was trained with"
            )
        if len(blanked.ids) > self.config.n_positions:
            raise ValueError(
                f"text: expected at most n_positions={self.config.n_positions} tokens with its start and blanks, got "
                f"{len(blanked.ids)}; shorten it"
            )
        return blanked

    def _warn_of_dropout(self) -> None:
        if self.training and max(self.config.resid_pdrop, self.config.embd_pdrop, self.config.attn_pdrop) > 0:
            logger.warning_once(
                "in training mode dropout makes what the network answers random; call model.eval() first"
            )

    def _layout(self, layout: str | None) -> str:
        layout = self.config.layout if layout is None else layout
        # a question says itself who sees whom: the numbers would not be those the network was trained for
        other = [text for text, mask in self.transformer._default_masks().items() if type(mask) is not Causal]
        if other:
            raise ValueError(
                f"config.mask: questions need a network whose mask is causal, this one's is {other[0]!r:.60}; "
                "score with forward, or load it with mask='causal' to ask all the same"
            )
        if layout == "sigma" and not self.config.target_positions:
            raise ValueError(
                "layout: sigma needs an embedding of target positions, which this network lacks; use another layout, "
                "or build it with target_positions=True"
            )
        return layout

    def _settle(
        self,
        input_ids: Tensor,
        ask: Conditional,
        layout: str,
        *,
        needs_answers: bool = False,
        generator: torch.Generator | None = None,
    ) -> ResolvedConditional:
        check_asked(self.config, input_ids, ask)
        if layout == "masked" and ask.given_sees == "earlier":
            raise ValueError("given_sees: in the layout masked every token sees every other; leave 'earlier' out")
        question = ask.resolve(*input_ids.shape, given_sees=self.config.given_sees, generator=generator)
        if input_ids.device.type == "cpu":
            is_read = question.given | question.target if needs_answers else question.given
            unknown = ((input_ids < 0) | (input_ids >= self.config.vocab_size)) & is_read
            if bool(unknown.any()):
                row, position = unknown.nonzero()[0].tolist()
                raise ValueError(
                    f"input_ids: expected a token from 0 to {self.config.vocab_size - 1} at position {position} of row "
                    f"{row}, which is given or scored, got {int(input_ids[row, position])}"
                )
        return question

    def _read(self, slots: list[Slots], input_ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # of all questions one after the other: which it is (n,), rows (n,), positions (n,) and the states (n, D) that
        # predict what is there
        names_target = self.config.target_positions
        if self.transformer.wme is None and any(bool(one.masked.any()) for one in slots):
            logger.warning_once(
                "this network has no [MASK] vector: unknown tokens get a zero vector, which it never saw in training; "
                "train it on a task first"
            )
        length = input_ids.shape[1]
        if len(slots) == 1:
            inputs: dict[str, Any] = slots[0].fill(input_ids, names_target=names_target)
            readers = slots[0].slots_predicting(length)[None]
        else:
            branches = join(slots, length, names_target=names_target)
            inputs = {
                "mask": branches.mask(input_ids.device),
                **branches.slots.fill(input_ids, names_target=names_target),
            }
            readers = branches.slots_predicting
        states = self.transformer(**inputs, use_cache=False).last_hidden_state  # (B, S, D)
        numbers, rows, positions = (readers >= 0).nonzero(as_tuple=True)
        # moved together: each move is a wait
        index = torch.stack([numbers, rows, positions, readers[numbers, rows, positions]])
        numbers, rows, positions, columns = index.to(input_ids.device, non_blocking=True).unbind(0)
        return numbers, rows, positions, states[rows, columns]


def score_text(model: Any, tokenizer: Any, text: str, answers: Any = None, *, top: int = 5) -> list[Scored]:
    """log P of candidates for the blanks of a text, such as "The cat [M] on the [M]"; see the method of that name."""
    scored: list[Scored] = model.score_text(tokenizer, text, answers, top=top)
    return scored


def check_asked(config: ArbProbConfig, input_ids: Tensor, ask: object) -> None:
    """Raise unless a question is a question, and about tokens (B, T) of at most `n_positions`."""
    if not isinstance(input_ids, Tensor) or input_ids.dtype != torch.long or input_ids.dim() != 2:
        is_tensor = isinstance(input_ids, Tensor)
        got = f"{input_ids.dtype}, {tuple(input_ids.shape)}" if is_tensor else type(input_ids).__name__
        advice = (
            "torch.tensor(ids)[None] makes one of a list"
            if not is_tensor
            else ("convert with .long()" if input_ids.dtype != torch.long else "ids[None] is a batch of one text")
        )
        raise TypeError(f"input_ids: expected a tensor of torch.int64 (batch, tokens), got {got}; {advice}")
    if input_ids.numel() == 0:
        raise ValueError(f"input_ids: expected shape (batch, tokens), not empty, got {tuple(input_ids.shape)}")
    if input_ids.shape[1] > config.n_positions:
        raise ValueError(
            f"input_ids: expected at most n_positions={config.n_positions} tokens, got {input_ids.shape[1]}; "
            "shorten the input"
        )
    # known by what it can do: a downloaded model has classes of its own
    if isinstance(ask, type) or not hasattr(ask, "resolve"):
        raise TypeError(f"ask: expected a Conditional(given=..., target=...), got {kind_of(ask)}")
