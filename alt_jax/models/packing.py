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
from alt_jax.microbatches import in_batch

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


class Move(NamedTuple):
    """Takes some of N things of each group to T places, nothing twice.

    Attributes:
      to: What comes to each place; N for nothing.
      back: Where each thing went; T for nowhere.
    """

    to: Int[Array, "G T"]
    back: Int[Array, "G N"]

    @property
    def number(self) -> UInt32[Array, "G T"]:
        """Of what lies at each place, among the things of all groups; means nothing where nothing does."""
        groups, things = self.back.shape
        return (self.to + things * jnp.arange(groups)[:, None]).astype(jnp.uint32)

    @property
    def inverse(self) -> "Move":
        """Takes them back."""
        return Move(self.back, self.to)

    def __call__(self, x: Float[Array, "G N *d"]) -> Float[Array, "G T *d"]:
        """Vectors to their places, 0 where there is nothing."""
        return _take(x, self.to, self.back)

    def ids(self, ids: Int[Array, "G N"]) -> Int[Array, "G T"]:
        """The same for what has no gradient."""
        return _at(ids, self.to, 0)


class Layout(NamedTuple):
    """Where the tokens of B rows of L slots lie: in G groups of T places each.

    Attributes:
      mask: Which slots hold a token.
      position: Of the slots' tokens in their prompts.
      move: From a group's slots to its places; None: padding is kept, each row is a group, places are slots.
      choice: From the tokens that these were selected from; None: these are all.
    """

    mask: Bool[Array, "B L"]
    position: Int[Array, "b L"]
    move: Move | None = None
    choice: Move | None = None

    @property
    def number(self) -> UInt32[Array, "G T"] | None:
        """Of every place's slot in the batch, from which dropout draws, packed or not; None: in order."""
        return None if self.move is None else in_batch(self.move.number, self.mask.shape[1])

    def pack(self, x: Float[Array, "B L *d"]) -> Float[Array, "G T *d"]:
        """Rows to places."""
        return x if self.move is None else self.move(x.reshape((*self.move.back.shape, *x.shape[2:])))

    def pack_ids(self, ids: Int[Array, "b L"]) -> Int[Array, "g T"]:
        """Rows to places; one row may stand for all."""
        if self.move is None:
            return ids
        return self.move.ids(jnp.broadcast_to(ids, self.mask.shape).reshape(self.move.back.shape))

    def unpack(self, x: Float[Array, "G T *d"]) -> Float[Array, "B L *d"]:
        """Places to rows; a slot that holds nothing is 0 where this is packed."""
        return x if self.move is None else self.move.inverse(x).reshape((*self.mask.shape, *x.shape[2:]))

    def pick(self, x: Float[Array, "G N *d"]) -> Float[Array, "G T *d"]:
        """These tokens' share of the states of all that they were selected from."""
        return x if self.choice is None else self.choice(x)


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
    """The layout of a batch's real tokens; `room` as in `side_by_side`, None: padding is kept."""
    position = jnp.arange(mask.shape[1])[None, :]
    if room is None:
        return Layout(mask, position)
    held, move = side_by_side(mask, groups, room)
    return Layout(held, position, move)


def side_by_side(mask: Bool[Array, "B L"], groups: int, room: int) -> tuple[Bool[Array, "B L"], Move]:
    """Moves some tokens of a batch together.

    Args:
      mask: Which.
      groups: G, of as many rows each.
      room: T, places in a group; tokens beyond it are left out.

    Returns:
      Which tokens have a place, and the move there from the slots of all of a group's rows.
    """
    slots = mask.reshape(groups, -1)
    rank = jnp.cumsum(slots, axis=1) - 1
    held = slots & (rank < room)
    place = jnp.where(held, rank, room)
    return held.reshape(mask.shape), Move(_inverse(place, room), place)


def select(layout: Layout, wanted: Wanted) -> Layout:
    """The layout of some tokens of another one, `wanted.slots` (W) to a row."""
    (rows, length), slots = wanted.where.shape, wanted.slots
    rank = jnp.cumsum(wanted.where, axis=1) - 1
    slot = jnp.where(wanted.where & layout.mask & (rank < slots), rank, slots)  # of each token in its row, or W
    token = _inverse(slot, slots)  # of each slot in its row, or L
    mask, position = token < length, jnp.minimum(token, length - 1)
    if layout.move is None:
        return Layout(mask, position, choice=Move(token, slot))
    (groups, _), per_group = layout.move.back.shape, rows // layout.move.back.shape[0]
    held, move = side_by_side(mask, groups, per_group * slots if wanted.room is None else wanted.room)
    row = jnp.arange(per_group)[None, :, None]

    def group(x: Shaped[Array, "B W"]) -> Shaped[Array, "G R W"]:
        return x.reshape((groups, per_group, x.shape[1]))

    # Of every slot of a row: where its token lies among all. Of every token: where it lies among the selected.
    whole, some = layout.move.to.shape[1], move.to.shape[1]
    among_all = _at(layout.move.back, (row * length + group(position)).reshape(groups, -1), whole)
    its_slot = jnp.where(group(slot) < slots, row * slots + group(slot), per_group * slots)
    among_selected = _at(move.back, its_slot.reshape(groups, -1), some)
    choice = Move(_at(among_all, move.to, whole), _at(among_selected, layout.move.to, some))
    return Layout(held, position, move, choice)


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
def _take(x: Float[Array, "G N *d"], to: Int[Array, "G T"], back: Int[Array, "G N"]) -> Float[Array, "G T *d"]:
    """What lies at `to`, 0 where that is N. Nothing is taken twice, so the gradient is taken back in the same way.

    (JAX would add the gradient up row by row instead, since it cannot know that.)
    """
    return jax.vmap(lambda x, i: x.at[i].get(mode="fill", fill_value=0))(x, to)


_take.defvjp(
    lambda x, to, back: (_take(x, to, back), (to, back)),
    lambda move, g: (_take(g, move[1], move[0]), None, None),
)
