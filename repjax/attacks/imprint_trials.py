"""Trials of imprints: rounds of users, what is read from them, how alike it is.

What studies of Fowl et al., ICLR 2022 (https://arxiv.org/abs/2110.13057) share:
several seeds side by side, each with a trap and private rows of its own.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Literal
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from repjax import trees
from repjax import types
from repjax.attacks import imprint as attack
from repjax.attacks import imprint_bins
from repjax.layers import imprint
from repjax.methods import supervised
from repjax.metrics import pictures
from repjax.protocols import rounds
from repjax.protocols import side_by_side


class Scored(NamedTuple):
  """How well private images were recovered, of one seed.

  Attributes:
    psnr: Of each private image's own of the recovered ones, [N]; -inf without
      one.
    images: The recovered ones in that order, pixels in [0, 1], [N, H, W, C].
    singles: Share of the images that were alone in their bin: the oracle.
    ssim: Mean over private images of their structural similarity; 0 without a
      recovered one.
  """

  psnr: np.ndarray
  images: np.ndarray
  singles: float
  ssim: float

  def above(self, decibels: float) -> float:
    """Share of the images with more than this signal-to-noise ratio."""
    return float((self.psnr > decibels).mean())


class Round(NamedTuple):
  """One round of users, and what is in it.

  Attributes:
    users: U.
    steps: T, local steps of each; 1 is FedSGD.
    rate: Of the local steps. 1 makes of one step the gradient itself.
    private: Links in front of the local SGD, such as `optim.dp_sgd`.
    own: States [S, ...] -> states with keys of their own, for the links that
      draw noise, be they the users' or the server's.
    compress: One user's update and a key -> what it sends.
    what: Users send the 'sum' of their updates, or a 'difference'.
    server: Links of the server's chain, which users are seen through; None
      shows the sum.
    dtype: Of parameters and inputs: float64 needs `float64.enabled()`.
  """

  users: int = 1
  steps: int = 1
  rate: float = 1.0
  private: optax.GradientTransformation | None = None
  own: Callable[[types.TrainState], types.TrainState] = lambda states: states
  compress: Callable[[types.PyTree, jax.Array], types.PyTree] | None = None
  what: Literal['sum', 'difference'] = 'sum'
  server: optax.GradientTransformation | None = None
  dtype: Any = np.float32


def seen(
  model: nn.Module,
  traps: Sequence[attack.Trap],
  connection: imprint.Connection,
  columns: Mapping[str, np.ndarray],
  seeds: Sequence[int],
  protocol: Round,
) -> list[types.PyTree]:
  """What the server sees of the imprint in one round, a seed.

  Args:
    model: `imprint.Imprinted`, whose imprint fits the traps.
    traps: One a seed; all of one kind and number of bins.
    connection: Of the imprint.
    columns: Private rows a seed, [S, N, ...], which users get in equal parts.
    seeds: S seeds.
    protocol: What users do.

  Raises:
    InputError: If rows cannot be divided evenly among users and steps.
  """
  num_rows = columns['label'].shape[1]
  if num_rows % (protocol.users * protocol.steps):
    raise types.InputError(
      f'{num_rows} private rows cannot be divided evenly among '
      f'{protocol.users} users of {protocol.steps} local steps.'
    )
  tx = optax.chain(
    protocol.private or optax.identity(),
    optax.sgd(protocol.rate),
    rounds.record(),
  )
  method = supervised.make(model, tx)
  rows: dict[str, Any] = dict(columns)
  rows['image'] = jnp.asarray(columns['image'], protocol.dtype)
  states = side_by_side.begin(method, rows, seeds)
  states = _planted(tx, states, traps, connection, protocol.dtype)
  if protocol.server is None:
    states = protocol.own(states)
  order = np.arange(num_rows).reshape((protocol.users, protocol.steps, -1))

  def one(state, columns, seed):
    rng = jax.random.key(seed)
    sent = rounds.send(method, state, columns, order, rng, what=protocol.what)
    if protocol.compress is not None:
      rngs = jax.random.split(jax.random.fold_in(rng, 1), protocol.users)
      sent = sent._replace(
        update=jax.vmap(protocol.compress)(sent.update, rngs)
      )
    return sent

  sent = jax.jit(jax.vmap(one))(states, rows, jnp.asarray(seeds))
  if protocol.server is None:
    total = jax.jit(jax.vmap(lambda x: rounds.secure_sum(x)[0]['imprint']))
    return trees.unstack(jax.device_get(total(sent)))
  return _through(protocol.server, protocol.own, states, sent)


def score(
  update: types.PyTree,
  trap: attack.Trap,
  images: np.ndarray,
  *,
  scale: Mapping[str, np.ndarray],
  top: bool = True,
) -> Scored:
  """Reads a gradient, and compares all bins with the private images.

  Who does not know these has to choose among bins that noise has filled
  (`imprint.best`), and gets no more than this.

  Args:
    update: Of the imprint, one of `seen`.
    trap: What was planted.
    images: Private ones as the network sees them, [N, H, W, C].
    scale: mean and std, by which pixels in [0, 1] became what it sees.
    top: Whether the top bin is read.
  """
  found = attack.read(update, trap.kind, at=(), top=top)
  kept = found.inputs[found.hit]

  def pixels(x):
    return np.asarray(x, np.float64) * scale['std'] + scale['mean']

  shown = np.clip(pixels(kept.reshape((-1, *images.shape[1:]))), 0, 1)
  shown = np.where(np.isfinite(shown), shown, 0)
  truth = pixels(images)
  own = pictures.matched(truth, shown)
  pairs = np.concatenate([shown, np.zeros_like(truth[:1])])[own]
  some = own >= 0
  return Scored(
    psnr=np.where(some, pictures.psnr(truth, pairs), -np.inf),
    images=pairs,
    singles=float(imprint_bins.singles(trap.scores(images), trap.edges).mean()),
    ssim=float(np.where(some, pictures.ssim(truth, pairs), 0).mean()),
  )


def _planted(tx, states, traps, connection, dtype):
  """States with a trap each, and optimizers of their own."""
  planted = []
  for params, trap in zip(trees.unstack(states.params), traps, strict=True):
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    planted.append(attack.plant({'params': params}, trap, connection)['params'])
  params = trees.stack(planted)
  return states.replace(params=params, opt_state=jax.vmap(tx.init)(params))


def _through(links, own, states, sent):
  """Steps of a server's chain, which alone become known."""
  tx = optax.with_extra_args_support(links)
  states = own(states.replace(opt_state=jax.vmap(tx.init)(states.params)))

  def step(params, opt_state, sent):
    grad_fn = rounds.OfUsers(sent)
    mean, _ = grad_fn(params)
    updates, _ = tx.update(mean, opt_state, params, grad_fn=grad_fn)
    return updates['imprint']

  return trees.unstack(
    jax.device_get(
      jax.jit(jax.vmap(step))(states.params, states.opt_state, sent)
    )
  )
