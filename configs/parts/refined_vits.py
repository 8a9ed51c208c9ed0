"""Networks of the attacks on vision transformers, and their refinements.

Naseer et al., ICLR 2022. https://arxiv.org/abs/2106.04169
"""

import functools

import flax.linen as nn
import jax
import numpy as np
import optax

from repjax import optim
from repjax import start
from repjax import types
from repjax.experiments import of_images
from repjax.methods import supervised
from repjax.methods import token_refinement
from repjax.models import refined_vit
from repjax.models import vit
from repjax.protocols import side_by_side
from repjax.weights import stored_config
from repjax.weights import vit_weights


def network(config, num_classes: int, **changes) -> vit.ViT:
  """The transformer that is attacked, or one with other fields."""
  fields = {**config.model, **changes}
  made = vit.ViT(
    num_classes, head_init=nn.initializers.lecun_normal(), **fields
  )
  return vit_weights.as_stored(config.weights, made) if config.weights else made


def with_refinement(config, num_classes: int) -> refined_vit.RefinedViT:
  """The same with a refinement behind each block but the last."""
  return refined_vit.RefinedViT(
    network(config, num_classes),
    norm=config.refinement.norm,
    shared=config.refinement.shared,
    remat=config.model.remat,
  )


def refinement(
  config,
  num_classes: int,
  steps: int,
  optimizer: types.Optimizer = optax.sgd,
) -> types.Method:
  """The method that trains the refinements, for this many steps."""
  in_turn = config.refinement.order == 'in_turn'
  rate = optim.warmup_cosine(config.tx.learning_rate, steps=steps, warmup=0.0)
  return token_refinement.make(
    with_refinement(config, num_classes),
    optax.chain(
      optax.add_decayed_weights(config.tx.weight_decay),
      optimizer(
        config.tx.learning_rate if in_turn else rate,
        momentum=config.tx.momentum,
      ),
    ),
    order=config.refinement.order,
    steps_per_block=max(1, steps // max(1, config.model.num_layers - 1)),
    **config.step,
  )


def pretrain(config, data: of_images.Data, seeds) -> types.PyTree:
  """Parameters of `network`, trained on the same rows, one a seed."""
  settings = config.pretraining
  rows = side_by_side.rows(
    data.train, data.recipe.evaluate, decode=data.recipe.decode_evaluate
  )
  rate = optim.warmup_cosine(
    settings.learning_rate, steps=settings.steps, warmup=0.1
  )
  return side_by_side.train(
    'pretraining',
    supervised.make(network(config, data.train.num_classes), optax.adamw(rate)),
    {},
    {name: x[:500] for name, x in rows.items()},
    seeds=seeds,
    batch_size=settings.batch_size,
    steps=settings.steps,
    points=4,
    shared=rows,
  ).states.params


def begin(
  config, data: of_images.Data, state: types.TrainState
) -> types.TrainState:
  """A fresh state whose network is given, or trained first."""
  if config.weights:
    stored_config.warn_of_other_pixels(config.weights, config.augment)
    load = functools.partial(vit_weights.load_vit, config.weights, head='keep')
    return start.fill(
      state,
      lambda x: {**x, 'vit': load(x['vit'])},
      keep=refined_vit.of_refinement,
    )
  if 'pretraining' not in config:
    raise types.InputError(
      'config.weights is empty: give the file of a published ViT-S/16, or '
      'measure with the preset small.'
    )
  params = pretrain(config, data, (config.seed,))
  params = jax.tree.map(lambda x: np.asarray(x[0]), params)
  return start.with_params(
    state, {'vit': params}, keep=refined_vit.of_refinement
  )
