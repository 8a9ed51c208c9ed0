"""Token refinement: small modules that let each block of a ViT classify.

Naseer et al., ICLR 2022, section 3.2 (https://arxiv.org/abs/2106.04169). The
network is frozen; what is trained makes the tokens of its early blocks readable
for its last head.
"""

from typing import Any
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from repjax import optim
from repjax import types
from repjax.layers import frozen
from repjax.methods import model_inputs
from repjax.methods import step as steps
from repjax.models import refined_vit
from repjax.types import check_choice
from repjax.types import check_range


def make(
  model: refined_vit.RefinedViT,
  tx: optax.GradientTransformation,
  *,
  order: Literal['together', 'in_turn'] = 'together',
  steps_per_block: int = 1,
  **settings: Any,
) -> types.Method:
  """Minimizes the sum of the early blocks' cross-entropies.

  Args:
    model: Of at least two blocks; its `vit` stays as it is.
    tx: Optax chain.
    order: 'together' trains all refinements in every step, 'in_turn' the first,
      then the second, ..., as published: the others, and the optimizer's
      moments of them, stay as they are (`optim.in_turn`).
    steps_per_block: Steps of each refinement in turn; steps beyond the last
      one's go on with it. (The published schedule asks for one epoch too many
      and ends with an error there.)
    **settings: microbatches, compute_dtype, ema_decay; see `steps.make`.

  Returns:
    A `types.Method` over batches of 'image' [B, H, W, C] and 'label' [B].
    `predict` gives 'logits' [B, K] of the network, and those of its L blocks:
    'refined' and 'plain' [B, L, K].

  Raises:
    InputError: The network has one block or no class token, or a setting is out
      of range.
  """
  check_choice('order', order, ('together', 'in_turn'))
  check_range('[1, inf)', steps_per_block=steps_per_block)
  num_early = model.vit.num_layers - 1
  check_range('[2, inf)', num_layers=model.vit.num_layers)
  if order == 'in_turn':
    names = [f'refine_{i}' for i in range(num_early)]
    tx = optim.in_turn(tx, names, steps_per_block=steps_per_block)
  trained: nn.Module = frozen.train_only(model, refined_vit.of_refinement)

  def loss_fn(params, model_state, batch, rng):
    logits, model_state = model_inputs.forward(
      trained,
      model_inputs.image,
      {'params': params, **model_state},
      batch,
      rng,
    )
    early = logits[:, :-1].astype(jnp.float32)
    label = jnp.broadcast_to(batch['label'][:, None], early.shape[:2])
    losses = optax.softmax_cross_entropy_with_integer_labels(early, label)
    hits = (early.argmax(-1) == label).astype(jnp.float32)
    if order == 'in_turn':
      now = jax.nn.one_hot(batch['block'], num_early)
      losses, hits = losses * now, hits * now * num_early
    return types.Losses(
      loss=losses.sum(1),
      model_state=model_state,
      metrics={'loss': losses.sum(1), 'accuracy': hits.mean(1)},
    )

  step = steps.make(loss_fn, tx, **settings)

  def init(rng, batch):
    return step.init(model_inputs.init(trained, model_inputs.image, rng, batch))

  def update(state, batch, rng):
    if order == 'in_turn':
      block = optim.whose_turn(state.opt_state.step, num_early, steps_per_block)
      batch = {**batch, 'block': jnp.broadcast_to(block, batch['label'].shape)}
    return step.update(state, batch, rng)

  def predict(state, batch):
    variables = steps.variables(state)
    refined = model_inputs.evaluate(
      trained, model_inputs.image, variables, batch
    ).astype(jnp.float32)
    plain = trained.apply(variables, batch['image'], method='plain')
    return {
      'logits': refined[:, -1],
      'refined': refined,
      'plain': plain.astype(jnp.float32),
    }

  return types.Method(init, update, predict)
