"""Prompts without their padding.

What treats every token by itself (linear layers, norms, activations, dropout) sees the tokens of a group of rows one
after the other, [G, T, D]. Attention alone has them in rows, [B, L, D], since it mixes the tokens of a row. A group is
the rows of one device, so that packing moves nothing between devices; and the last layer may be asked for some tokens'
states only. Without packing a row is a group of its own, T is L, and nothing is moved at all.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt32

from alt_jax.bounds import log_mean_exp, sum_bound

_WORTH_IT = 0.95  # of the slots, above which packing would not pay


class Wanted(NamedTuple):
    """Tokens whose states are asked for.

    Attributes:
      where: Which, all of them real.
      slots: Most of one row.
      room: Most of one group; what is beyond is left out. None: as many as there are slots.
    """

    where: Bool[Array, "B L"]
    slots: int
    room: int | None = None


def first(mask: Bool[Array, "B L"], count: int = 1) -> Wanted:
    """The first tokens of every row; by default [CLS]."""
    return Wanted(mask & (jnp.arange(mask.shape[1]) < count)[None, :], count)


class Layout(NamedTuple):
    """Where the tokens of B rows of L slots lie: in G groups of S = B·L/G slots and T places each.

    Attributes:
      mask: Which slots hold a token.
      position: Of the slots' tokens in their prompts.
      slot: Each place's slot in its group, S where there is nothing; None: not packed, each row is a group.
      place: Each slot's place, T where there is none; None likewise.
      source: Where each of these tokens lies among those that it was selected from; None: they are all of them.
      back: For each of those, where it lies among these, or T.
    """

    mask: Bool[Array, "B L"]
    position: Int[Array, "b L"]
    slot: Int[Array, "G T"] | None = None
    place: Int[Array, "G S"] | None = None
    source: Int[Array, "G T"] | None = None
    back: Int[Array, "G N"] | None = None

    @property
    def number(self) -> UInt32[Array, "G T"] | None:
        """Of every place's slot in the whole batch, from which dropout draws: the same noise, packed or not.

        None where places are slots in order. A place that holds nothing has a number that means nothing.
        """
        if self.slot is None or self.place is None:
            return None
        groups, slots = self.place.shape
        return (self.slot + slots * jnp.arange(groups)[:, None]).astype(jnp.uint32)

    def pack(self, x: Float[Array, "B L *d"]) -> Float[Array, "G T *d"]:
        """Rows to places."""
        if self.slot is None or self.place is None:
            return x
        groups, slots = self.place.shape
        return _move(x.reshape((groups, slots, *x.shape[2:])), self.slot, self.place)

    def pack_ids(self, ids: Int[Array, "b L"]) -> Int[Array, "g T"]:
        """Rows to places, 0 where there is nothing; one row may stand for all."""
        if self.slot is None or self.place is None:
            return ids
        return _at(jnp.broadcast_to(ids, self.mask.shape).reshape(self.place.shape), self.slot, 0)

    def unpack(self, x: Float[Array, "G T *d"]) -> Float[Array, "B L *d"]:
        """Places to rows; a slot that holds nothing is 0 where this is packed."""
        if self.slot is None or self.place is None:
            return x
        return _move(x, self.place, self.slot).reshape((*self.mask.shape, *x.shape[2:]))

    def pick(self, x: Float[Array, "G N *d"]) -> Float[Array, "G T *d"]:
        """These tokens' share of the states of all that they were selected from."""
        return x if self.source is None or self.back is None else _move(x, self.source, self.back)


def room(lengths: Int[np.ndarray, " N"], rows: int, length: int) -> int | None:
    """Tokens that a group of rows drawn by chance has at most, but for a chance of 1e-12 (`alt_jax.bounds`).

    Args:
      lengths: Tokens of the prompts that rows are drawn from, or of a sample of them.
      rows: Of the group.
      length: Slots of a row, at least the longest prompt.

    Returns:
      T, a multiple of 16; None where that is hardly less than all slots, so that packing would not pay.
    """
    n, count = np.unique(lengths, return_counts=True)
    most = sum_bound(lambda s: log_mean_exp(s * n, count), rows, length)
    places = 16 * math.ceil(most / 16)
    return places if places <= _WORTH_IT * rows * length else None


def lay_out(mask: Bool[Array, "B L"], groups: int, room: int | None) -> Layout:
    """Packs the real tokens of a batch.

    Args:
      mask: Which are real.
      groups: G, of as many rows each.
      room: T; a group's tokens beyond it are taken for padding. None: padding is kept.
    """
    position = jnp.arange(mask.shape[1])[None, :]
    if room is None:
        return Layout(mask, position)
    rank = jnp.cumsum(mask.reshape(groups, -1), axis=1) - 1
    held = mask.reshape(groups, -1) & (rank < room)
    place = jnp.where(held, rank, room)
    return Layout(held.reshape(mask.shape), position, _inverse(place, room), place)


def select(layout: Layout, wanted: Wanted) -> Layout:
    """The layout of some tokens of another one, `wanted.slots` to a row."""
    rows, length = wanted.where.shape
    slots = wanted.slots
    rank = jnp.cumsum(wanted.where, axis=1) - 1
    slot = jnp.where(wanted.where & layout.mask & (rank < slots), rank, slots)  # of each token in its row, or none
    token = _inverse(slot, slots)  # of each slot in its row, or L
    mask, position = token < length, jnp.minimum(token, length - 1)
    if layout.slot is None or layout.place is None:
        return Layout(mask, position, source=token, back=slot)
    groups = layout.place.shape[0]
    room = rows // groups * slots if wanted.room is None else wanted.room
    packed = lay_out(mask, groups, room)
    assert packed.slot is not None
    assert packed.place is not None
    row = jnp.arange(rows // groups)[None, :, None]

    def group(x: Shaped[Array, "B W"]) -> Shaped[Array, "G R W"]:
        return x.reshape((groups, rows // groups, x.shape[1]))

    # Of every slot of a row: where its token lies among all. Of every token: where it lies among the selected.
    whole, some = layout.slot.shape[1], packed.slot.shape[1]
    among_all = _at(layout.place, (row * length + group(position)).reshape(groups, -1), whole)
    its_slot = jnp.where(group(slot) < slots, row * slots + group(slot), rows // groups * slots)
    among_selected = _at(packed.place, its_slot.reshape(groups, -1), some)
    return packed._replace(
        position=position, source=_at(among_all, packed.slot, whole), back=_at(among_selected, layout.slot, some)
    )


def _inverse(place: Int[Array, "G S"], room: int) -> Int[Array, "G {room}"]:
    """What lies at each place, S where nothing does; places rise from left to right, and `room` means none."""
    slots = place.shape[1]
    order = jnp.argsort(place, axis=1)[:, :room]
    order = jnp.pad(order, ((0, 0), (0, room - order.shape[1])))
    return jnp.where(jnp.arange(room)[None, :] < jnp.sum(place < room, axis=1, keepdims=True), order, slots)


def _at(x: Int[Array, "G N"], index: Int[Array, "G M"], otherwise: int) -> Int[Array, "G M"]:
    """The elements of each group at an index, `otherwise` beyond the end."""
    return jax.vmap(lambda x, i: x.at[i].get(mode="fill", fill_value=otherwise))(x, index)


@jax.custom_vjp
def _move(x: Float[Array, "G N *d"], to: Int[Array, "G M"], back: Int[Array, "G N"]) -> Float[Array, "G M *d"]:
    """What lies at `to`, 0 where that is N. Nothing is taken twice, so the gradient is taken back in the same way.

    (JAX would add the gradient up row by row instead, since it cannot know that.)
    """
    return jax.vmap(lambda x, i: x.at[i].get(mode="fill", fill_value=0))(x, to)


_move.defvjp(
    lambda x, to, back: (_move(x, to, back), (to, back)),
    lambda indices, g: (_move(g, indices[1], indices[0]), None, None),
)
