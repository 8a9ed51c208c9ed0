"""Memory and time of private steps against the same step without privacy."""

from collections.abc import Callable
import time
from typing import Any
from typing import NamedTuple

from absl import flags
from absl import logging
import numpy as np

from repjax import types

_SHAPES = flags.DEFINE_list(
  'privacy_shapes', None, 'Of the privacy benchmark; by default all.'
)

CLIP_NORM, NOISE_MULTIPLIER, LEARNING_RATE = 0.1, 1.0, 1e-3


class Shape(NamedTuple):
  """A network and a batch.

  Attributes:
    kind: 'lm', a decoder with tied embeddings, or 'vit', S/16 at 224.
    batch_size: Rows.
    length: Tokens of a row.
    width: Of the network.
    layers: Its blocks.
    vocabulary: Different tokens.
    dtype: Of the computation; None infers it from the parameters, float32.
  """

  kind: str
  batch_size: int
  length: int
  width: int
  layers: int
  vocabulary: int = 10_000
  dtype: str | None = None


# The first is the one that is timed, too.
_ALL: dict[str, Shape] = {
  'LM, width 320, 32 x 64': Shape('lm', 32, 64, 320, 4),
  'LM, width 512, 32 x 64': Shape('lm', 32, 64, 512, 4),
  'LM, width 768, 32 x 64': Shape('lm', 32, 64, 768, 4),
  'LM, width 320, 32 x 16': Shape('lm', 32, 16, 320, 4),
  'LM, width 320, 8 x 512': Shape('lm', 8, 512, 320, 4),
  'ViT-S/16, 16 images': Shape('vit', 16, 197, 384, 12),
}
_FORMS = ('none', 'ghost', 'vmap', 'microbatch', 'jax-privacy')


def privacy(rounds: int) -> dict[str, Any]:
  """DP-Adam by every form over Adam without privacy, on one device.

  Temporary memory is XLA's count for the whole compiled step (gradient, noise,
  Adam), with state and parameters donated; flops are its count, too. Time is of
  the first shape, with all sides in turn.
  """
  names = list(_ALL) if _SHAPES.value is None else _SHAPES.value
  forms = list(_FORMS)
  result: dict[str, Any] = {}
  try:
    import jax_privacy  # noqa: F401
  except ImportError:
    forms.remove('jax-privacy')
    result['jax-privacy'] = 'skipped: needs pip install jax-privacy'
  for name in names:
    if name not in _ALL:
      raise types.InputError(
        f'--privacy_shapes: there is no {name!r}; there are {", ".join(_ALL)}.'
      )
    steps = {form: Step(_ALL[name], form) for form in forms}
    plain = steps['none']
    numbers = {
      'parameters': plain.num_parameters,
      'temporary MiB without privacy': plain.temporary_bytes / 2**20,
    }
    for form, step in steps.items():
      if form == 'none':
        continue
      memory = step.temporary_bytes / plain.temporary_bytes
      numbers[f'{form}, temporary memory'] = memory
      numbers[f'{form}, flops'] = step.flops / plain.flops
    if name == next(iter(_ALL)):
      numbers.update(_time(steps, rounds))
    logging.info('%s: %s', name, numbers)
    result[name] = numbers
  return result


def _time(steps, rounds):
  """Seconds of each form over those without privacy, best of the rounds."""
  best = {form: float('inf') for form in steps}
  for form, step in steps.items():
    step.run()
    logging.info('%s is warm', form)
  for _ in range(rounds):
    for form, step in steps.items():
      best[form] = min(best[form], step.run())
  return {
    f'{form}, time': seconds / best['none']
    for form, seconds in best.items()
    if form != 'none'
  }


class Step:
  """A compiled step of one form.

  Attributes:
    num_parameters: Of the network.
    flops: XLA's count.
    temporary_bytes: Beside state, parameters and batch.
    peak_bytes: With them; what is donated counts once.
  """

  def __init__(self, shape: Shape, form: str):
    """Compiles it; `form` is of 'none', 'ghost', 'vmap' and so on."""
    import jax

    loss_fn, init, batch = _network(shape)
    self._params = jax.eval_shape(init, jax.random.key(0))
    self._init, self._batch = init, batch
    self.num_parameters = sum(x.size for x in jax.tree.leaves(self._params))
    self._tx_init, step = _step(loss_fn, form, shape.batch_size)
    self._step = (
      jax.jit(step, donate_argnums=(0, 1))
      .lower(
        self._params,
        jax.eval_shape(self._tx_init, self._params),
        batch,
        jax.random.key(0),
      )
      .compile()
    )
    self._state: Any = None
    costs: Any = self._step.cost_analysis()
    memory: Any = self._step.memory_analysis()
    self.flops = costs['flops']
    self.temporary_bytes = memory.temp_size_in_bytes
    self.peak_bytes = (
      memory.argument_size_in_bytes
      + memory.temp_size_in_bytes
      + memory.output_size_in_bytes
      - memory.alias_size_in_bytes
    )

  def run(self) -> float:
    """Seconds of one step."""
    import jax

    if self._state is None:
      params = self._init(jax.random.key(0))
      # A copy of its own of each leaf, which are given away.
      self._state = jax.tree.map(
        lambda x: x.copy(), (params, self._tx_init(params))
      )
    rng = jax.random.key(1)
    start = time.perf_counter()
    self._state = self._step(*self._state, self._batch, rng)
    jax.block_until_ready(self._state)
    return time.perf_counter() - start


def _step(loss_fn, form, batch_size) -> tuple[Callable[..., Any], ...]:
  """(init, step) of Adam on the gradients of one form."""
  import jax
  import optax

  from repjax import gradients
  from repjax import optim

  links = [optax.adam(LEARNING_RATE)]
  if form not in ('none', 'jax-privacy'):
    private = optim.dp_sgd(
      CLIP_NORM,
      NOISE_MULTIPLIER,
      expected_batch_size=batch_size,
      key=jax.random.key(0),
      method=form,
    )
    links.insert(0, private)
  tx = optax.with_extra_args_support(optax.chain(*links))

  def plain_loss(params, batch):
    return loss_fn(params, {}, batch, None).loss.sum()

  def step(params, state, batch, rng):
    grad_fn = gradients.GradFn(loss_fn, batch, rng, {})
    if form == 'jax-privacy':
      import jax_privacy

      total = jax_privacy.clipped_grad(plain_loss, l2_clip_norm=CLIP_NORM)(
        params, batch
      )
      leaves, treedef = jax.tree.flatten(total)
      rngs = jax.random.split(rng, len(leaves))
      stddev = CLIP_NORM * NOISE_MULTIPLIER
      leaves = [
        (x + stddev * jax.random.normal(r, x.shape)) / batch_size
        for x, r in zip(leaves, rngs, strict=True)
      ]
      grads = jax.tree.unflatten(treedef, leaves)
    else:
      grads, _ = grad_fn(params)  # Not computed where nothing uses it.
    updates, state = tx.update(grads, state, params, grad_fn=grad_fn)
    return optax.apply_updates(params, updates), state

  return tx.init, step


def _network(shape):
  """(loss function, rng -> parameters, batch)."""
  import jax
  import optax

  from repjax.models import transformer
  from repjax.models import vit

  rng = np.random.default_rng(0)
  if shape.kind == 'lm':
    size = (shape.batch_size, shape.length + 1)
    tokens = rng.integers(0, shape.vocabulary, size).astype(np.int32)
    batch = {'inputs': tokens[:, :-1], 'label': tokens[:, 1:]}
    model = transformer.DecoderLM(
      shape.vocabulary,
      hidden_dim=shape.width,
      mlp_dim=4 * shape.width,
      num_heads=shape.width // 64,
      num_layers=shape.layers,
      num_positions=shape.length,
      dtype=shape.dtype,
    )
  else:
    batch = {
      'inputs': rng.normal(size=(shape.batch_size, 224, 224, 3)).astype('f4'),
      'label': rng.integers(0, 1000, (shape.batch_size, 1)).astype(np.int32),
    }
    model = vit.ViT(1000, patch_size=16, dtype=shape.dtype, **vit.SIZES['S'])
  batch['mask'] = np.ones(shape.batch_size, np.float32)

  def loss_fn(params, model_state, batch, rng):
    del rng
    logits = model.apply({'params': params}, batch['inputs'], train=True)
    label = batch['label']
    logits = logits.reshape((*label.shape, -1))
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return types.Losses(loss.mean(-1), model_state, {})

  def init(rng):
    return model.init(rng, batch['inputs'][:1], train=False)['params']

  return loss_fn, jax.jit(init), jax.tree.map(jax.numpy.asarray, batch)
