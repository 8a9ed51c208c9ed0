"""Device code: what users send, made shorter.

Two compressions of updates. Both go over what `rounds.send` gives, a user at a
time:

    sent = sent._replace(update=jax.vmap(largest)(sent.update))
"""

import functools

import jax
import jax.numpy as jnp

from repjax import types


def largest(update: types.PyTree, *, share: float = 0.01) -> types.PyTree:
  """The entries of largest magnitude, the others 0, leaf by leaf.

  Aji and Heafield, 'Sparse Communication for Distributed Gradient Descent',
  EMNLP 2017, section 3. https://aclanthology.org/D17-1045

  Args:
    update: One user's.
    share: Of the entries of each leaf that are sent, in (0, 1]; one at least.
  """
  types.check_range('(0, 1]', share=share)

  def keep(x):
    count = min(x.size, max(1, round(share * x.size)))
    values, places = jax.lax.top_k(jnp.abs(x).reshape(-1), count)
    del values  # Where they are is enough.
    flat = jnp.zeros(x.size, x.dtype).at[places].set(x.reshape(-1)[places])
    return flat.reshape(x.shape)

  return jax.tree.map(keep, update)


def rounded(
  update: types.PyTree, rng: jax.Array, *, levels: int = 127
) -> types.PyTree:
  """Whole multiples of a leaf's largest entry / levels, by chance up or down.

  The mean over `rng` is the update itself: QSGD (Alistarh et al., NeurIPS 2017,
  section 3.1, https://arxiv.org/abs/1610.02132) with the largest entry as the
  scale; 127 levels are 8 bits.

  Args:
    update: One user's.
    rng: Decides what goes up.
    levels: Between 0 and the largest entry, >= 1.
  """
  types.check_range('[1, inf)', levels=levels)
  leaves, treedef = jax.tree.flatten(update)
  rngs = jax.random.split(rng, len(leaves))
  one = functools.partial(_rounded, levels=levels)
  return jax.tree.unflatten(
    treedef, [one(x, key) for x, key in zip(leaves, rngs, strict=True)]
  )


def _rounded(x, rng, *, levels):
  # Between 64 and 128 bfloat16 knows halves alone, which no draw is fair to.
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  unit = jnp.abs(wide).max(initial=0) / levels
  safe = jnp.where(unit > 0, unit, 1)
  up = jax.random.uniform(rng, x.shape, wide.dtype)
  # The largest entry stays one: levels + 0.9999999 is levels + 1 in float32.
  found = jnp.clip(jnp.floor(wide / safe + up), -levels, levels)
  return (found * unit).astype(x.dtype)
