"""Device code: the step that methods with one loss and one optimizer share."""

from collections.abc import Callable
from collections.abc import Mapping
import functools
from typing import Any
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from repjax import gradients
from repjax import parallel
from repjax import trees
from repjax import types
from repjax.types import InputError

# As in `types.Method`.
Update = Callable[
  [types.TrainState, types.Batch, jax.Array],
  tuple[types.TrainState, types.Sums],
]


# What a link may not take a batch apart into: see `WholeGradFn`.
Refused = Literal['parts', 'rows']

# How collections of running means and variances end (`layers.norms`, flax).
_STATISTICS = 'batch_stats'


class EmaState(NamedTuple):
  """Exponential moving average of what a model predicts with.

  Attributes:
    params: Like `TrainState.params`.
    statistics: What holds batch statistics in `TrainState.model_state`, which
      are of what parameters make: averaged ones want theirs.
  """

  params: types.PyTree
  statistics: types.PyTree


class Step(NamedTuple):
  """What a method is made of, besides its loss.

  Attributes:
    init: (the model's variables) -> TrainState.
    update: (state, batch, rng) -> (state, sums), as in `types.Method`.
    learn: `update` without its `transform`: all of the key is the loss's.
  """

  init: Callable[[types.PyTree], types.TrainState]
  update: Update
  learn: Update


class WholeGradFn(gradients.GradFn):
  """The gradient of a loss in which rows meet: no link may take them apart.

  Rows that are compared with each other, or remembered (a queue, a centre), are
  no single rows: clipping their gradients bounds nothing, and a group of them
  has another loss. Rows that met before the loss, which blended them or weighed
  them by what others there are, have the loss of their own in each group, but
  one that is left out still changes others.

  Args:
    what: The method, for the message.
    *args: What `gradients.GradFn` is made with.
    refuses: 'parts' of any size, or single 'rows' alone.
    **settings: What `gradients.GradFn` is made with.
  """

  def __init__(
    self, what: str, *args: Any, refuses: Refused = 'parts', **settings: Any
  ):
    super().__init__(*args, **settings)
    self._what = what
    self._refuses = refuses

  def over_groups(self, num_groups, fn):
    """Refuses several groups, or none; one is all rows of a device."""
    if num_groups != 1 and self._refuses == 'parts':
      self._refuse()
    return super().over_groups(num_groups, fn)

  def clipped(self, params, clip_norm, **how):
    """Refuses."""
    del params, clip_norm, how
    return self._refuse()

  def _refuse(self):
    if self._refuses == 'rows':
      raise InputError(
        f'{self._what} makes a loss of several rows: no link may look at '
        'single ones (dp_sgd).'
      )
    raise InputError(
      f'{self._what} compares all rows: no link may look at some (dp_sgd, SAM '
      'groups).'
    )


def make(
  loss_fn: types.LossFn,
  tx: optax.GradientTransformation,
  *,
  microbatches: int = 1,
  compute_dtype: str = 'float32',
  ema_decay: float = 0.0,
  transform: Callable[[types.Batch, jax.Array], types.Batch] | None = None,
  finish: Callable[[types.Sums], types.Sums] | None = None,
  whole: str = '',
  refuses: Refused = 'parts',
) -> Step:
  """One gradient of a mean loss, handed to an optax chain.

  Args:
    loss_fn: (params, model_state, batch, rng) -> `types.Losses`.
    tx: Optax chain; links that take `grad_fn` get it.
    microbatches: Parts in which each device goes through its rows.
    compute_dtype: 'float32' or 'bfloat16'. Parameters, optimizer and losses
      stay float32; the loss function sees parameters, and those columns of
      `types.INPUTS` that are no ids, in this type.
    ema_decay: Decay of an average of the parameters (and of batch statistics)
      that `variables` gives, in [0, 1); 0 keeps none. After t updates it is
      (1 + t) / (10 + t) where that is less, so that the start is forgotten.
    transform: (batch, rng) -> batch on the devices, before the loss; `rng` is
      equal on all devices.
    finish: Makes what is reported of the sums over all devices.
    whole: Name of a method whose rows meet, which refuses links that take them
      apart (`WholeGradFn`); '' for one whose rows do not.
    refuses: With `whole`: 'parts' of any size, or single 'rows' alone.

  Raises:
    InputError: If a setting is out of range.
  """
  if not 0 <= ema_decay < 1:
    raise InputError(f'Need 0 <= ema_decay < 1; got {ema_decay=}')
  if compute_dtype not in ('float32', 'bfloat16'):
    raise InputError(
      f"compute_dtype is 'float32' or 'bfloat16'; got {compute_dtype=}"
    )

  def init(variables):
    model_state, params = pop_params(variables)
    return types.TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt_state=tx.init(params),
      model_state=model_state,
      extra=average_from(params, model_state) if ema_decay else (),
    )

  def update(state, batch, rng):
    rng_transform, rng_model = jax.random.split(rng)
    if transform is not None:
      batch = transform(batch, rng_transform)
    return learn(state, batch, rng_model)

  def learn(state, batch, rng):
    bind = binder(whole, refuses)
    grad_fn = bind(
      loss_fn,
      cast_inputs(batch, compute_dtype),
      parallel.device_rng(rng),
      state.model_state,
      microbatches=microbatches,
      compute_dtype=jnp.dtype(compute_dtype),
    )
    params, opt_state, aux = descend(tx, grad_fn, state.params, state.opt_state)
    extra = state.extra
    if ema_decay:
      now = average_from(params, aux.model_state)
      extra = _towards(now, extra, decay=ema_decay, step=state.step)
    state = types.TrainState(
      step=state.step + 1,
      params=params,
      opt_state=opt_state,
      model_state=aux.model_state,
      extra=extra,
    )
    return state, aux.sums if finish is None else finish(aux.sums)

  return Step(init, update, learn)


def binder(
  whole: str = '', refuses: Refused = 'parts'
) -> Callable[..., gradients.GradFn]:
  """The class of a step's `grad_fn`: see `make`."""
  if not whole:
    return gradients.GradFn
  return functools.partial(WholeGradFn, whole, refuses=refuses)


def descend(
  tx: optax.GradientTransformation,
  grad_fn: gradients.GradFn,
  params: types.PyTree,
  opt_state: types.PyTree,
) -> tuple[types.PyTree, types.PyTree, types.Aux]:
  """One update of what one optimizer trains.

  A method with several losses and optimizers calls it for each of them.

  Args:
    tx: Optax chain; links that take `grad_fn` get it.
    grad_fn: Of the loss, on the batch of this step.
    params: What is trained.
    opt_state: State of `tx`.

  Returns:
    (parameters, opt_state, what came with the gradient).
  """
  grads, aux = grad_fn(params)
  updates, opt_state = optax.with_extra_args_support(tx).update(
    grads, opt_state, params, grad_fn=grad_fn
  )
  # A link that clips single rows has made a forward pass of its own.
  aux = grad_fn.clipped_aux or aux
  return optax.apply_updates(params, updates), opt_state, aux


def cast_inputs(batch: types.Batch, dtype: str) -> types.Batch:
  """The batch with those of its `types.INPUTS` that are no ids in `dtype`."""
  return {
    name: x.astype(dtype)
    if name in types.INPUTS and jnp.issubdtype(x.dtype, jnp.floating)
    else x
    for name, x in batch.items()
  }


class Seen(NamedTuple):
  """What a loss is called with, as `seen` finds it.

  Attributes:
    params: In the type of the computation.
    batch: Inputs in that type, rows of padding blank.
    rng: This device's own key.
  """

  params: types.PyTree
  batch: types.Batch
  rng: jax.Array


def seen(
  params: types.PyTree,
  batch: types.Batch,
  rng: jax.Array,
  *,
  compute_dtype: str = 'float32',
) -> Seen:
  """What the loss of a step will see, before that step.

  For methods whose state goes on by what the model says of the rows. A forward
  pass on it is in the step's gradient once more; XLA makes the two one.

  Args:
    params: Of the state.
    batch: This device's rows, as they are handed to the gradient.
    rng: Equal on all devices, as `Step.learn` gets it.
    compute_dtype: 'float32' or 'bfloat16', that of the step.
  """
  return Seen(
    trees.cast(params, jnp.dtype(compute_dtype)),
    gradients.blank_padding(cast_inputs(batch, compute_dtype)),
    parallel.device_rng(rng),
  )


def variables(state: types.TrainState) -> types.PyTree:
  """What to predict with: averaged parameters where an average is kept."""
  if not isinstance(state.extra, EmaState):
    return {'params': state.params, **state.model_state}
  average, rest = state.extra, dict(state.model_state)
  for name, x in average.statistics.items():
    rest[name] = x if name.endswith(_STATISTICS) else {**rest[name], **x}
  return {'params': average.params, **rest}


def average_from(params: types.PyTree, model_state: types.PyTree) -> EmaState:
  """An average that begins with parameters and a model's other collections."""
  found = {}
  for name, x in model_state.items():
    if name.endswith(_STATISTICS):
      found[name] = x
    elif isinstance(x, Mapping) and _STATISTICS in x:  # Of a second model.
      found[name] = {_STATISTICS: x[_STATISTICS]}
  return EmaState(params, found)


def _towards(now, average, *, decay, step):
  """The average one update later; equal numbers stay as they are."""
  part = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
  return jax.tree.map(
    lambda x, a: a + (part * (x - a)).astype(a.dtype), now, average
  )


def l2_penalty(params: types.PyTree, l2: float) -> jax.Array:
  """l2 / 2 * |params|^2 in float32."""
  params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
  return l2 / 2 * optax.tree.norm(params, squared=True)


def pop_params(variables: types.PyTree) -> tuple[types.PyTree, types.PyTree]:
  """(other collections, parameters) of a model's variables."""
  rest: dict[str, Any] = {
    name: tree for name, tree in variables.items() if name != 'params'
  }
  # What a module sows (attention maps) is no state.
  rest.pop('intermediates', None)
  return rest, variables['params']
