"""Networks behind imprints, and where their bins lie.

Fowl et al., ICLR 2022. https://arxiv.org/abs/2110.13057
"""

import flax.linen as nn
import optax

from configs import presets
from repjax import types
from repjax.attacks import imprint as attack
from repjax.attacks import imprint_bins
from repjax.experiments import of_images
from repjax.layers import imprint
from repjax.methods import supervised
from repjax.models import mlp
from repjax.models import resnet
from repjax.protocols import side_by_side

_LAWS = ('normal', 'laplace')


def trap(config, data: of_images.Data, **changes) -> attack.Trap:
  """What a server plants, by `config.imprint` and `changes` of it.

  Args:
    config: Of the recipe; its seed decides a random direction.
    data: The private rows, of which the shape alone is used.
    **changes: Of num_bins, bins, kind ..., or seed.

  Raises:
    InputError: If public rows are private ones.
  """
  chosen = {**config.imprint, 'seed': config.seed, **changes}
  shape = data.recipe.shape
  if shape is None:
    raise types.InputError(
      f'{data.train.name} has no images of one size: set config.augment.size.'
    )
  direction = imprint_bins.direction(
    chosen['direction'], shape, mode=chosen['mode'], seed=chosen['seed']
  )
  made = attack.Trap(direction, direction[:0], chosen['kind'], chosen['gain'])
  if chosen['bins'] in _LAWS:
    edges = imprint_bins.by_law(chosen['num_bins'], chosen['bins'])
  else:
    source = of_images.load(config, chosen['bins'])
    imprint_bins.check_public(source, data.train)
    public = side_by_side.rows(
      source, data.recipe.evaluate, decode=data.recipe.decode_evaluate
    )
    edges = imprint_bins.of_public(
      made.scores(public['image']), chosen['num_bins']
    )
  return made._replace(edges=edges)


def classifier(config, num_classes: int) -> nn.Module:
  """The network without an imprint."""
  kinds = dict(
    mlp=mlp.Mlp, resnet=resnet.ResNet, preact_resnet=resnet.PreActResNet
  )
  network = presets.choose('network', config.network, kinds)
  return network(num_classes=num_classes, **config[config.network])


def network(
  config, num_classes: int, trap: attack.Trap, connection: str = ''
) -> imprint.Imprinted:
  """The network behind the layer that a trap is planted in."""
  layer = trap.layer(connection or config.imprint.connection)
  return imprint.Imprinted(classifier(config, num_classes), layer)


def method(
  model: nn.Module, tx: optax.GradientTransformation, config
) -> types.Method:
  """How it is trained."""
  return supervised.make(model, tx, **config.step)


def planted(
  config, trap: attack.Trap, state: types.TrainState
) -> types.TrainState:
  """A fresh state with the trap in it."""
  planted = attack.plant(
    {'params': state.params}, trap, config.imprint.connection
  )
  return state.replace(params=planted['params'])
