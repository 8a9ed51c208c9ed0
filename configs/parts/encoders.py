"""Frozen networks through which parts of images are seen."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

from configs import presets
from repjax import start
from repjax import types
from repjax.analysis import masked_features
from repjax.data.sets import scenes
from repjax.models import conv_net
from repjax.models import resnet


class Encoder(NamedTuple):
  """A network through which images are seen.

  Attributes:
    model: The network.
    apply_fn: (variables, images as the network wants them) -> its outputs.
    variables: Of the network.
  """

  model: nn.Module
  apply_fn: masked_features.Apply
  variables: types.PyTree


def network(config, name: str, num_classes: int) -> nn.Module:
  """The network that a group of the config names by its field `network`."""
  kinds = dict(
    conv_net=conv_net.ConvNet,
    preact_resnet=resnet.PreActResNet,
    resnet=resnet.ResNet,
  )
  kind = config[name].network
  made = presets.choose(f'{name}.network', kind, kinds)
  return made(num_classes=num_classes, **config[kind])


def build(config, variables: types.PyTree | None = None) -> Encoder:
  """The frozen network, as `config.encoder` has it.

  Args:
    config: Of the recipe.
    variables: Of the network; None takes those of the run `encoder.run`, or,
      where that is '', of an untrained network.
  """
  chosen = config.encoder
  model = network(config, 'encoder', chosen.num_classes)

  if variables is None and chosen.run:
    variables = start.from_run(
      chosen.run, field='config.encoder.run', which='predicted'
    )
  elif variables is None:
    size = config.augment.size or scenes.SIZE
    variables = _init(model)(
      {'params': jax.random.key(config.seed)},
      np.zeros((1, size, size, 3), np.float32),
    )
  return Encoder(model, _applied(model), variables)


@functools.lru_cache(maxsize=16)
def _init(model):
  """One program for equal networks."""
  return jax.jit(functools.partial(model.init, train=False))


@functools.lru_cache(maxsize=16)
def _applied(model):
  """One function for equal networks, so that programs of it are shared."""

  def apply_fn(variables, image):
    return model.apply(variables, image, train=False)

  return apply_fn


def standardised(config, image: np.ndarray) -> np.ndarray:
  """Images as the networks want them, float32."""
  mean, std = (
    np.asarray(x, np.float32) for x in (config.augment.mean, config.augment.std)
  )
  return (image.astype(np.float32) / 255 - mean) / std
