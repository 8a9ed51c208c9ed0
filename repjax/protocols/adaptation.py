"""A stream of images, and what forms of adaptation to it are worth.

All forms see the same batches side by side: the network as it was trained
('source'), with statistics of the batch ('BN', Nado et al., 2020,
https://arxiv.org/abs/2006.10963), with statistics between those and the trained
ones ('blended', Schneider et al., NeurIPS 2020,
https://arxiv.org/abs/2006.16971), and with updates ('Tent').
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import operator
from typing import Any
from typing import Literal
from typing import NamedTuple
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from repjax import types
from repjax.adapt import collapse
from repjax.adapt import norm_layers
from repjax.adapt import tent
from repjax.data.images import corruptions
from repjax.data.reading import source as sources
from repjax.metrics import classification

Order = Literal['shuffled', 'sorted', 'as it is']

NO_CORRUPTION = 'none'
NAMES = ('source', 'BN', 'blended', 'Tent')


class Forms(NamedTuple):
  """The forms of adaptation of one trained network.

  Attributes:
    init: (trained state) -> what 'Tent' changes, before the stream.
    step: (trained state, what 'Tent' has changed, batch) -> (the same after
      the batch, name of a form -> logits [B, C]).
  """

  init: Callable[[types.TrainState], tent.Adapted]
  step: Callable[
    [types.TrainState, tent.Adapted, types.Batch],
    tuple[tent.Adapted, dict[str, jax.Array]],
  ]


def forms(
  predict: norm_layers.Predict,
  state: types.TrainState,
  batch: types.Batch,
  tx: optax.GradientTransformation,
  *,
  blend: float,
  names: Sequence[str] = NAMES,
  select: Callable[[Any], bool] = lambda path: True,
  **settings: Any,
) -> Forms:
  """All forms that a network's norms allow.

  Args:
    predict: Of the method that was trained.
    state: The trained state (`start.as_predicted`); its structure counts.
    batch: One of the stream; its shapes count.
    tx: Optax chain of 'Tent'.
    blend: Rows that the trained statistics count as in 'blended', > 0.
    names: Of those that are run, where the network allows them.
    select: Path of a norm's scale or bias -> whether 'Tent' changes it.
    **settings: Of `tent.make`, but for `prior`: statistics are those of the
      batch where there are batch norms.

  Raises:
    InputError: The network has no norms, the batch one row, there is no form of
      a name, or a setting is out of range.
  """
  types.check_range('(0, inf)', blend=blend)
  for name in names:
    types.check_choice('names', name, NAMES)
  layers = norm_layers.find(predict, state, batch)
  variables = {**state.model_state, 'params': state.params}
  paths = norm_layers.affine(variables, layers, select)
  predictors = {'source': predict}
  in_batches = any('batch' in x.kind for x in layers)
  if in_batches:
    predictors['BN'] = norm_layers.with_statistics(predict, 0.0)
    predictors['blended'] = norm_layers.with_statistics(predict, blend)
  adapter = tent.make(
    predict, tx, paths, prior=0.0 if in_batches else None, **settings
  )

  def step(state, adapted, batch):
    logits = {
      name: fn(state, batch)['logits']
      for name, fn in predictors.items()
      if name in names
    }
    if 'Tent' in names:
      adapted, outputs = adapter.step(state, adapted, batch)
      logits['Tent'] = outputs['logits']
    return adapted, logits

  return Forms(adapter.init, step)


def shifted(
  source: sources.Source,
  name: str,
  *,
  severity: int,
  scale: Literal['cifar', 'imagenet'] = 'cifar',
  order: Order = 'shuffled',
  seed: int = 0,
) -> sources.Source:
  """The set as a stream: corrupted, and in the order in which it comes.

  Args:
    source: The set; 'label' is read where the order is 'sorted'.
    name: A corruption, or 'none'.
    severity: 1 to 5.
    scale: Constants of the corruption.
    order: 'shuffled' by the seed, 'sorted' by label, or 'as it is'.
    seed: Of the order and of the corruption.
  """
  types.check_choice('order', order, get_args(Order))
  # Of the set as it is, whose labels are read without its images.
  label = source.column('label') if order == 'sorted' else None
  if name != NO_CORRUPTION:
    source = corruptions.corrupted(
      source, name, severity=severity, scale=scale, seed=seed
    )
  if label is not None:
    return source.select(np.argsort(label, kind='stable'))
  if order == 'shuffled':
    rows = np.random.default_rng([seed, len(source)]).permutation(len(source))
    return source.select(rows)
  return source


def batched(
  rows: Mapping[str, np.ndarray], batch_size: int
) -> dict[str, np.ndarray]:
  """Rows in batches, name -> [T, B, ...]; the last one is filled up, mask 0."""
  count = len(next(iter(rows.values())))
  steps = -(-count // batch_size)
  place = np.arange(steps * batch_size)
  mask = (place < count).astype(np.float32)
  place = np.where(mask > 0, place, 0)
  shape = (steps, batch_size)
  return {
    **{k: x[place].reshape(*shape, *x.shape[1:]) for k, x in rows.items()},
    'mask': mask.reshape(shape),
  }


def stream_fn(
  forms_fn: Callable[[jax.Array, types.TrainState, types.Batch], Forms],
) -> Callable[..., dict[str, np.ndarray]]:
  """Runs forms over whole streams, one trained state after the other.

  A compiled step at a time, since on CPUs convolutions are slow inside a scan,
  and so are those with weights a state (`seed_loop.fit`).

  Args:
    forms_fn: (learning rate of 'Tent', trained state, batch) -> `forms`; one
      program serves all rates.

  Returns:
    (states with a leading seed axis, S streams as `batched` makes them,
    learning rate) -> name of a form -> logits of the real rows in the
    order of the stream, [S, N, C]. Raises InputError where there are more or
    fewer streams than states.
  """

  @jax.jit
  def step(state, adapted, batch, rate):
    return forms_fn(rate, state, batch).step(state, adapted, batch)

  @jax.jit
  def init(state, batch, rate):
    return forms_fn(rate, state, batch).init(state)

  def one(state, stream, rate):
    parts = []
    for place in range(len(stream['mask'])):
      batch = {name: x[place] for name, x in stream.items()}
      if not place:
        adapted = init(state, batch, rate)
      adapted, logits = step(state, adapted, batch, rate)
      parts.append(logits)
    real = stream['mask'].reshape(-1) > 0
    return jax.tree.map(
      lambda *x: np.concatenate(x)[real], *jax.device_get(parts)
    )

  def call(states, streams, rate):
    count = len(jax.tree.leaves(states)[0])
    if len(streams) != count:  # JAX takes the last one where one is missing.
      raise types.InputError(
        f'{count} states need as many streams; got {len(streams)}.'
      )
    rate = jnp.float32(rate)
    found = [
      one(jax.tree.map(operator.itemgetter(i), states), stream, rate)
      for i, stream in enumerate(streams)
    ]
    return jax.tree.map(lambda *x: np.stack(x), *found)

  return call


def measure(
  logits: Mapping[str, np.ndarray], labels: np.ndarray, *, window: int
) -> dict[str, dict[str, float | None]]:
  """What each form is worth on a stream.

  Args:
    logits: Name of a form -> [N, C], with 'source'.
    labels: [N].
    window: Rows that the alarm looks at together.

  Returns:
    Name -> 'error', 'loss', 'entropy' (share of log C), 'classes' (how many are
    predicted, in effect) and 'collapsed_at', the row where the predictions of
    'Tent' collapse against those of the same network without updates, or None.

  Raises:
    NonFiniteError: If logits are not finite.
  """
  for name, x in logits.items():
    if not np.isfinite(x).all():
      # The other forms are those of the trained network, whatever Tent does.
      remedy = 'take another checkpoint'
      if name == 'Tent':
        remedy = 'give Tent a smaller learning rate'
      raise types.NonFiniteError(f'Logits of {name} are not finite: {remedy}.')
  reference = logits['BN' if 'BN' in logits else 'source']
  found = {}
  for name, x in logits.items():
    values = classification.measure(x, labels)
    seen = collapse.look(x)
    found[name] = {
      'error': 1 - values['accuracy'],
      'loss': values['loss'],
      'entropy': seen.entropy,
      'classes': seen.classes,
      'collapsed_at': collapse.alarm(x, reference, window=window),
    }
  return found
