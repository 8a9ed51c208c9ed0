"""Device code: federated rounds, users side by side in one compiled call.

A user trains the server's model on its own rows and sends the change; the
server makes a step of a sum over users (McMahan et al., AISTATS 2017, algorithm
1, https://arxiv.org/abs/1602.05629). One local step is FedSGD, several FedAvg,
FedOpt with another server optimizer (https://arxiv.org/abs/2003.00295).

A user is any `types.Method` whose chain ends with `record()`, the server's
optimizer any optax chain, which asks about users as others ask about rows.
Behind `optim.dp_sgd` a round is user-level DP-FedAvg (McMahan et al., ICLR
2018, https://arxiv.org/abs/1710.06963), with users for rows in
`privacy.accounting`: all in each round, or drawn by Poisson sampling, where
places nobody is drawn for hold -1. A round's metrics are not private. Users are
an axis under `vmap`; columns sharded along it leave each on a device.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from repjax import types


class RecordState(NamedTuple):
  """State of `record`.

  Attributes:
    total: Sum of all updates, like the parameters.
  """

  total: types.PyTree


def record() -> optax.GradientTransformation:
  """The last link of a user's chain: remembers the sum of its updates.

  In float32 the difference of the parameters after and before has lost most
  digits of small steps; the sum has not.
  """

  def init_fn(params):
    return RecordState(jax.tree.map(jnp.zeros_like, params))

  def update_fn(updates, state, params=None):
    del params  # How far they move is what counts.
    total = jax.tree.map(jnp.add, state.total, updates)
    return updates, RecordState(total)

  return optax.GradientTransformation(init_fn, update_fn)


class Sent(NamedTuple):
  """What users send.

  Attributes:
    update: Minus the change of the parameters, [U, ...]: the direction of a
      gradient; with one step of `optax.sgd(1.0)`, the mean gradient itself.
    weight: What each user counts, [U].
    model_state: The model's other collections after it, [U, ...].
    sums: Sums of the method's metrics, [U].
  """

  update: types.PyTree
  weight: jax.Array
  model_state: types.PyTree
  sums: types.Sums


def order(
  table: np.ndarray, *, steps: int, batch_size: int, seed: int
) -> np.ndarray:
  """Rows of each local step: epochs of a user's rows, shuffled.

  Args:
    table: Rows of each user, [U, n], -1 for padding (`partitions.table`).
    steps: T, local steps.
    batch_size: B, rows of one; a user with fewer than B takes all of them.
    seed: Decides the order.

  Returns:
    [U, T, B], -1 for padding.
  """
  types.check_range('[1, inf)', steps=steps, batch_size=batch_size)
  found = np.full((len(table), steps, batch_size), -1, np.int64)
  for user, rows in enumerate(table):
    own = rows[rows >= 0]
    if not len(own):
      raise types.InputError(f'user {user} has no row: leave it out.')
    generator = np.random.default_rng([seed, user])
    size = min(batch_size, len(own))
    epochs = -(-steps * size // len(own))
    drawn = np.concatenate([generator.permutation(own) for _ in range(epochs)])
    found[user, :, :size] = drawn[: steps * size].reshape(steps, size)
  return found


def send(
  method: types.Method,
  state: types.TrainState,
  columns: Mapping[str, jax.Array],
  order: jax.Array,
  rng: jax.Array,
  *,
  what: Literal['sum', 'difference'] = 'sum',
  weight: jax.Array | None = None,
) -> Sent:
  """What all users make of the server's model.

  Args:
    method: What a user does; its chain ends with `record()` where `what` is
      'sum'. A `dp_sgd` in it draws noise of its own for each user and round.
    state: The server's model; optimizers begin anew at each user.
    columns: Rows of all users, name -> [N, ...].
    order: Rows of each user and step, [U, T, B], -1 for padding.
    rng: Of this round.
    what: 'sum' of the updates, or 'difference' of the parameters, which is what
      real protocols send, rounded to the parameters' type.
    weight: What each user counts, [U], such as its number of rows n_k, as in
      FedAvg; None: real rows that it goes through, alike where steps end first.

  Raises:
    InputError: When traced, if `what` is unknown, or nothing is recorded, or
      weights are not [U].
  """
  types.check_choice('what', what, ('sum', 'difference'))
  columns = {name: jnp.asarray(x) for name, x in columns.items()}

  def of_user(index, rows):
    own_rng = jax.random.fold_in(rng, index)
    opt_state = _own_keys(state.opt_state, state.step, index)
    start = state.replace(opt_state=opt_state)

    def step(current, chosen):
      batch = {name: x[chosen] for name, x in columns.items()}
      batch['mask'] = (chosen >= 0).astype(jnp.float32)
      step_rng = jax.random.fold_in(own_rng, current.step)
      return method.update(current, batch, step_rng)

    if rows.shape[0] == 1:  # FedSGD, without a loop around it.
      end, sums = step(start, rows[0])
    else:
      end, sums = jax.lax.scan(step, start, rows)
      sums = jax.tree.map(lambda x: x.sum(0), sums)
    if what == 'sum':
      update = jax.tree.map(jnp.negative, _recorded(end.opt_state))
    else:
      update = jax.tree.map(jnp.subtract, state.params, end.params)
    seen = (rows >= 0).sum().astype(jnp.float32)
    return Sent(update, seen, end.model_state, sums)

  sent = jax.vmap(of_user)(jnp.arange(order.shape[0]), order)
  if weight is not None:  # Who is not drawn counts nothing.
    if jnp.shape(weight) != sent.weight.shape:
      raise types.InputError(f'weight must be {sent.weight.shape}, for users')
    sent = sent._replace(weight=jnp.where(sent.weight > 0, weight, 0.0))
  return sent


@jax.default_matmul_precision('highest')  # Nothing sent is rounded.
def secure_sum(sent: Sent) -> tuple[types.PyTree, jax.Array]:
  """All that a server sees behind secure aggregation.

  Returns:
    (sum over users of updates times weights, sum of weights). Over FedSGD's
    gradients, their ratio is the gradient of one large batch.
  """
  # bfloat16 would round numbers of rows, and float16 ends at 65504.
  weight = sent.weight.astype(jnp.float32)
  total = jax.tree.map(lambda x: jnp.tensordot(weight, x, 1), sent.update)
  return total, weight.sum()


class OfUsers:
  """What users sent, as a `types.GradFn`: of a server's optax chain."""

  def __init__(self, sent: Sent):
    self._sent = sent
    self._params: list[jax.Array] | None = None
    self.asked = types.Asked()
    self.clipped_aux = None

  def __call__(self, params, *, sync=True):
    """The mean over users, by their weights: FedAvg's step."""
    del sync  # Users are on no device of their own.
    self.asked.check_open()
    leaves = jax.tree.leaves(params)
    self._params = self._params or leaves
    if any(a is not b for a, b in zip(leaves, self._params, strict=True)):
      raise types.InputError(
        "users' gradients elsewhere are not known: SAM is for the users' chain"
      )
    total, weight = secure_sum(self._sent)
    weight = jnp.where(weight > 0, weight, 1.0)
    of = self._sent.update
    mean = jax.tree.map(lambda x, y: (x / weight).astype(y.dtype), total, of)
    self.asked.plain = jax.tree.leaves(mean)
    return mean, self._aux({})

  def clipped(self, params, clip_norm, *, style='flat', rows_per_user=1, **how):
    """The sum over users of what each sent, cut to norm `clip_norm`.

    A user counts as one, however many rows it has, and not at all without any
    row, or where it sent what is not finite.
    """
    del params, how  # Each user sends one vector, which costs nothing.
    self.asked.check_open()
    if style != 'flat' or rows_per_user != 1:
      raise types.InputError(
        "dp_sgd of a server takes style='flat' and rows_per_user=1: users are "
        f'clipped as a whole; got {style=}, {rows_per_user=}'
      )
    if jax.tree.leaves(self._sent.model_state):
      raise types.InputError(
        f'users send the collections {sorted(self._sent.model_state)} without '
        "clipping or noise: take a model without them (norm='group')"
      )
    squares = [
      jnp.square(x.astype(jnp.float32)).reshape(len(x), -1).sum(1)
      for x in jax.tree.leaves(self._sent.update)
    ]
    norms = jnp.sqrt(sum(squares))  # [U]
    real = (self._sent.weight > 0).astype(jnp.float32)
    finite = jnp.isfinite(norms) * real
    factor = jnp.minimum(1.0, clip_norm / (norms + 1e-6))
    factor = jnp.where(finite > 0, factor, 0)

    def add(x):
      shape = (-1,) + (1,) * (x.ndim - 1)
      kept = jnp.where(finite.reshape(shape) > 0, x, 0)
      return (kept * factor.reshape(shape)).sum(0)  # bfloat16 would round up.

    def weigh(x):
      return jnp.where(finite > 0, x, 0).sum(), finite.sum()

    more = {
      'gradient_norm': weigh(norms),
      'unclipped': weigh((norms <= clip_norm).astype(jnp.float32)),
      'nonfinite': ((real - finite).sum(), real.sum()),
    }
    self.clipped_aux = self._aux(more)
    return jax.tree.map(add, self._sent.update), self.clipped_aux

  def _aux(self, more):
    total = self._sent.weight.sum()
    weight = self._sent.weight / jnp.where(total > 0, total, 1.0)

    def mean(x):
      if not jnp.issubdtype(x.dtype, jnp.floating):
        return x[0]
      return jnp.tensordot(weight.astype(x.dtype), x, 1)

    sums = jax.tree.map(lambda x: x.sum(0), dict(self._sent.sums)) | more
    return types.Aux(jax.tree.map(mean, self._sent.model_state), sums)


class Server(NamedTuple):
  """The server's side.

  Attributes:
    state: Of the model; `state.step` counts rounds.
    opt_state: Of the server's optimizer.
  """

  state: types.TrainState
  opt_state: Any


class Rounds(NamedTuple):
  """Federated training.

  Attributes:
    begin: Fresh state of the users' method -> Server.
    step: (Server, columns, order [U, T, B], rng, weight=None) -> (Server,
      sums), as `send` takes them; compiled.
  """

  begin: Callable[[types.TrainState], Server]
  step: Callable[..., tuple[Server, types.Sums]]


def make(
  method: types.Method,
  server_tx: optax.GradientTransformation | None = None,
  *,
  what: Literal['sum', 'difference'] = 'sum',
) -> Rounds:
  """Rounds of a method of users and an optimizer of the server.

  Args:
    method: What a user does: see `send`.
    server_tx: Takes what users sent as a gradient; None is `optax.sgd(1.0)`,
      which puts the mean of the users' models in the place of the old one.
    what: Users send: see `send`.
  """
  tx = optax.with_extra_args_support(server_tx or optax.sgd(1.0))

  def begin(state):
    if jax.tree.leaves(state.extra):  # No round brings it to the server.
      raise types.InputError('users keep an average or table: set ema_decay=0')
    return Server(state, tx.init(state.params))

  def step(server, columns, order, rng, weight=None):
    state = server.state
    sent = send(method, state, columns, order, rng, what=what, weight=weight)
    grad_fn = OfUsers(sent)
    mean, aux = grad_fn(state.params)
    updates, opt_state = tx.update(
      mean, server.opt_state, state.params, grad_fn=grad_fn
    )
    aux = grad_fn.clipped_aux or aux
    state = state.replace(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      model_state=aux.model_state,
    )
    return Server(state, opt_state), aux.sums

  return Rounds(begin, jax.jit(step))


def _recorded(opt_state):
  """The sum of updates in a state of an optax chain."""
  known = lambda x: isinstance(x, RecordState)  # noqa: E731
  found = [x for x in jax.tree.leaves(opt_state, is_leaf=known) if known(x)]
  if len(found) != 1:
    raise types.InputError(
      "what='sum' needs one link that records it: end the users' chain with "
      f'rounds.record(); got {len(found)} of them.'
    )
  return found[0].total


def _own_keys(opt_state, step, index):
  """Keys of a user and a round in the place of the one that all were given."""

  def own(path, x):
    if path[-1:] != (jax.tree_util.GetAttrKey('key'),):
      return x
    impl = {2: 'threefry2x32', 4: 'rbg'}[x.shape[-1]]
    key = jax.random.fold_in(jax.random.wrap_key_data(x, impl=impl), step)
    return jax.random.key_data(jax.random.fold_in(key, index))

  return jax.tree_util.tree_map_with_path(own, opt_state)
