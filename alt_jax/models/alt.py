"""Both towers and what stands on them, as one module tree whose sub-trees the stages share.

`ctr`, `plm` and `joint` are this module with a tower left out. Submodules that a method does not reach have no
parameters, so pretraining holds `ctr text align_ctr align_text similarity mlm mtm` and finetuning `ctr ctr_logit text
text_logit fusion`, or for two text towers `text text_second two_text_logit`, each only as far as it is used.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from alt_jax.config import Config, Strategy
from alt_jax.models.ctr import CTRLogit, CTRTower
from alt_jax.models.encoder import EncoderConfig, TextTower
from alt_jax.models.heads import (
    Fusion,
    MLMHead,
    MTMHead,
    Projection,
    RFDHead,
    Similarity,
    TextLogit,
    TwoTextLogit,
    pool,
)
from alt_jax.models.packing import Wanted, first
from alt_jax.models.text import text_tower
from alt_jax.schema import Schema


class ALT(nn.Module):
    """The whole model.

    Attributes:
      config: Sizes and options.
      schema: Feature ids.
      encoder: The text tower's architecture.
    """

    config: Config
    schema: Schema
    encoder: EncoderConfig

    def setup(self) -> None:
        """Names the submodules; Linen makes parameters only for those that a call reaches."""
        config = self.config
        self.ctr = CTRTower(config.ctr, self.schema.num_ids, self.schema.fields)
        self.ctr_logit = CTRLogit(config.ctr, self.schema.num_ids, self.schema.fields)
        dtype, remat = jnp.dtype(config.text.dtype), config.text.remat
        self.text = text_tower(self.encoder, dtype, remat=remat)
        self.text_second = text_tower(self.encoder, dtype, remat=remat)
        self.text_logit = TextLogit()
        self.two_text_logit = TwoTextLogit()
        self.fusion = Fusion(config.finetune.joint.fusion, config.finetune.joint.alpha)
        self.align_ctr = Projection(config.icl.dim, config.icl.dropout, config.icl.normalize)
        self.align_text = Projection(config.icl.dim, config.icl.dropout, config.icl.normalize)
        biased = config.icl.objective == "sigmoid"
        self.similarity = Similarity(config.icl.temperature, config.icl.learn_temperature, biased)
        self.mlm = MLMHead(self.encoder.vocab_size, config.mlm.dropout)
        if config.mtm.method == "rfd":
            self.mtm: MTMHead | RFDHead = RFDHead(self.schema, config.mtm.attention)
        else:
            self.mtm = MTMHead(self.schema, config.mtm.dim, config.mtm.attention)

    def represent(
        self, ids: Int[Array, "B S"], numbers: Float[Array, "B M"] | None = None, *, train: bool
    ) -> Float[Array, "B C"]:
        """h_c of a row of feature ids, and of its numbers."""
        return self.ctr(ids, numbers, train=train)

    def read(
        self,
        tokens: Int[Array, "B L"],
        mask: Bool[Array, "B L"],
        wanted: Wanted | None = None,
        room: int | None = None,
        *,
        train: bool,
    ) -> Float[Array, "B W D"]:
        """Token states of a prompt, of all its tokens or of some; see `TextTower`."""
        return self.text(tokens, mask, train=train, wanted=wanted, room=room)

    def align(
        self, representation: Float[Array, "B C"], text: Float[Array, "B D"], *, train: bool
    ) -> tuple[Float[Array, "B E"], Float[Array, "B E"]]:
        """Both views of a row, h_c and h_t, in the space where ICL compares them."""
        return self.align_ctr(representation, train=train), self.align_text(text, train=train)

    def compare(self) -> tuple[float | Float[Array, ""], float | Float[Array, ""]]:
        """Scale and bias of the similarities that ICL is made of."""
        scale: tuple[Any, Any] = self.similarity()
        return scale

    def recover_tokens(
        self,
        states: Float[Array, "K D"],
        representation: Float[Array, "K C"] | None,
        number: UInt32[Array, " K"] | None = None,
        *,
        train: bool,
    ) -> Float[Array, "K V"]:
        """Vocabulary logits at masked positions (MLM); see `MLMHead`."""
        return self.mlm(states, representation, number, train=train)

    def recover_features(
        self, representation: Float[Array, "B C"], states: Float[Array, "B L D"] | None, mask: Bool[Array, "B L"] | None
    ) -> tuple[Float[Array, "B F E"], Float[Array, "N E"], Float[Array, " N"]] | Float[Array, "B F"]:
        """Field vectors, output table and bias (MTM), or logits of "was replaced" (RFD); with no states, no help."""
        return self.mtm(representation, states, mask)

    def click(
        self,
        strategy: Strategy,
        ids: Int[Array, "B S"],
        tokens: Int[Array, "B L"] | None,
        mask: Bool[Array, "B L"] | None,
        numbers: Float[Array, "B M"] | None = None,
        second: tuple[Int[Array, "B L"], Bool[Array, "B L"]] | None = None,
        room: int | None = None,
        *,
        train: bool,
    ) -> dict[str, Float[Array, " B"]]:
        """Click logits under a finetuning strategy.

        Args:
          strategy: `ctr` and `joint` read `ids`; `plm` and `joint` read `tokens` and `mask`.
          ids: Feature ids.
          tokens: Prompts, or None for `ctr`.
          mask: Which tokens are real, or None for `ctr`.
          numbers: Of the numeric fields.
          second: Tokens and mask for the second text tower (`plm`), if there is one.
          room: Of `TextTower`, for one text tower.
          train: Whether dropout is on.

        Returns:
          A logit under `strategy`, and for `joint` also those of its two parts.
        """
        logits = {}
        if strategy != "plm":
            h = self.ctr(ids, numbers, train=train)
            logits["ctr"] = self.ctr_logit(ids, h)
        if strategy != "ctr":
            assert tokens is not None
            assert mask is not None
            h_text = self._pooled(self.text, tokens, mask, room, train=train)
            if second is None:
                logits["plm"] = self.text_logit(h_text)
            else:
                other = self._pooled(self.text_second, *second, train=train)
                logits["plm"] = self.two_text_logit(h_text, other)
        if strategy == "joint":
            logits["joint"] = self.fusion(logits["ctr"], logits["plm"], h, h_text)
        return logits

    def _pooled(
        self,
        tower: TextTower,
        tokens: Int[Array, "B L"],
        mask: Bool[Array, "B L"],
        room: int | None = None,
        *,
        train: bool,
    ) -> Float[Array, "B D"]:
        """h_t of prompts; the last layer computes no states that are not read."""
        pooling = self.config.text.pooling
        wanted = first(mask) if pooling == "cls" else None
        return pool(tower(tokens, mask, train=train, wanted=wanted, room=room), mask, pooling)

    def score(
        self,
        strategy: Strategy,
        ids: Int[Array, "B S"],
        tokens: Int[Array, "B L"] | None,
        mask: Bool[Array, "B L"] | None,
        numbers: Float[Array, "B M"] | None = None,
        second: tuple[Int[Array, "B L"], Bool[Array, "B L"]] | None = None,
        room: int | None = None,
    ) -> Float[Array, " B"]:
        """The strategy's own click logit, dropout off."""
        return self.click(strategy, ids, tokens, mask, numbers, second, room, train=False)[strategy]
