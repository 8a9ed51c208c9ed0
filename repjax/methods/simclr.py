"""Device code: SimCLR, and its supervised form, SupCon.

Chen, Kornblith, Norouzi and Hinton, 'A Simple Framework for Contrastive
Learning of Visual Representations', ICML 2020. https://arxiv.org/abs/2002.05709

Two views of each row go through one network; each finds the other among all
views of all devices' rows (`contrastive.nt_xent`). With labels, all views of
rows of one's class are to be found (`contrastive.sup_con`).
"""

from typing import Any
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import optax

from repjax import parallel
from repjax import types
from repjax.methods import classifier
from repjax.methods import contrastive
from repjax.methods import embedder
from repjax.methods import grouped
from repjax.methods import mixup
from repjax.methods import model_inputs
from repjax.methods import step as steps
from repjax.methods import two_views

# The column of the second view, which a step adds.
_OTHER = 'other_view'


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  views: two_views.TwoViews,
  positives: Literal['rows', 'labels'] = 'rows',
  temperature: float = 0.1,
  dim: int = 128,
  hidden: int = 0,
  inputs: model_inputs.Inputs = model_inputs.image,
  head: str = 'head',
  **settings: Any,
) -> types.Method:
  """Contrastive learning from two views.

  Args:
    model: Any linen classifier; its last layer is not used, and not trained.
    tx: Optax chain over {'model', 'projection'}.
    views: How the two views are made, on the devices.
    positives: 'rows' is SimCLR, which reads no labels; 'labels' is SupCon.
    temperature: tau > 0; .1 in the paper on ImageNet, .5 on CIFAR-10.
    dim: Of the embeddings.
    hidden: Width of the projection's hidden layer; 0 for that of the features.
    inputs: What the model is called with, in place of images.
    head: Module names of the last layer, whose input are the features.
    **settings: compute_dtype, ema_decay, finish; see `steps.make`.

  Returns:
    A `types.Method`. Its sums have 'loss', and 'agreement', how often a row's
    second view is the nearest of all second views on its device. `predict`
    gives 'features' [B, D]. Batch statistics are those of both views of all
    devices' rows.

  Raises:
    InputError: If a setting is out of range, or, when a step is traced, if a
      link of the chain looks at parts of the rows, or there is one row alone.
  """
  types.check_range('(0, inf)', temperature=temperature)
  types.check_choice('positives', positives, ('rows', 'labels'))
  grouped.check_whole(settings)
  own = embedder.Embedder(
    model=model, dim=dim, hidden=hidden, inputs=inputs, head=head
  )

  def loss_fn(params, model_state, batch, rng):
    rows = len(batch['mask'])
    other = classifier.view(batch, _OTHER)
    # One pass over both views: batch statistics must not tell them apart.
    both = {x: jnp.concatenate([batch[x], other[x]]) for x in batch}
    made = own.embed(params, model_state, both, rng)
    first, second = made.vectors[:rows], made.vectors[rows:]
    if positives == 'rows':
      loss = contrastive.nt_xent(
        first, second, batch['mask'], temperature=temperature
      )
    else:
      loss = contrastive.sup_con(
        jnp.stack([first, second]),
        batch['label'],
        batch['mask'],
        temperature=temperature,
      )
    cosines = jnp.where(batch['mask'][None] > 0, first @ second.T, -2.0)
    agree = (cosines.argmax(-1) == jnp.arange(rows)).astype(jnp.float32)
    return types.Losses(
      loss, made.model_state, {'loss': loss, 'agreement': agree}
    )

  def transform(batch, rng):
    first, second = views(batch, rng)
    name = mixup.input_name(batch)
    return {**first, _OTHER: second[name]}

  step = steps.make(
    loss_fn, tx, transform=transform, whole='SimCLR', **settings
  )

  def init(rng, batch):
    return step.init(own.init(rng, batch))

  def update(state, batch, rng):
    made = step.update(state, batch, rng)  # Refuses a link that sees parts.
    if len(parallel.all_gather(batch['mask'])) < 2:
      raise types.InputError(
        'A step has one row, and SimCLR learns from what tells rows apart: '
        'raise config.batch_size.'
      )
    return made

  return types.Method(init, update, own.predict)
