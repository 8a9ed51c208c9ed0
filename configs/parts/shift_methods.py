"""The methods of the benchmark of fine-grained shifts, by name.

Of the 19 of Wiles et al. (ICLR 2022, sec. 4) here are 17: networks (ResNet-18
as PreAct ResNet-18, ResNet-50, ResNet-101, ViT, MLP), augmentations (crops with
flips, RandAugment, AutoAugment, AugMix without its loss), IRM, DeepCORAL, DANN,
SagNet, domain Mixup, BN-Adapt, JTT, and pretraining, which is a field of any of
them (`pretrained`). CycleGAN and the beta-VAE are not here. GroupDRO, and an
augmentation that describes the nuisance of coloured sets (hue), come in
addition. The value of the nuisance is the domain.
https://arxiv.org/abs/2110.11328
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from repjax import start
from repjax import trees
from repjax import types
from repjax.data.images import transforms
from repjax.experiments import of_images
from repjax.methods import erm
from repjax.methods import model_inputs
from repjax.types import InputError

# Those that are ERM on augmented images.
AUGMENTATIONS = ('hue', 'crop', 'rand_augment', 'auto_augment', 'augmix')
# Those that know the value of the nuisance, and weigh a penalty.
PENALTIES = ('irm', 'coral', 'dann')
# Those that train as ERM does, on other views or weights of the rows, or
# predict in another way.
_AS_ERM = ('erm', *AUGMENTATIONS, 'jtt', 'bn_adapt')
NAMES = (
  'erm',
  *AUGMENTATIONS,
  *PENALTIES,
  'sagnet',
  'domain_mixup',
  'group_dro',
  'jtt',
  'bn_adapt',
)


_NETWORKS = ('convnet', 'mlp', 'preact_resnet', 'resnet', 'vit')


def network(config: Any, num_labels: int):
  """The network that a config names."""
  types.check_choice('config.network', config.network, _NETWORKS)
  if config.network not in config:
    raise InputError(
      f'config.network={config.network} has no settings in this preset: it has '
      f'{", ".join(x for x in _NETWORKS if x in config)}.'
    )
  kind = _network(config.network)
  return kind(num_classes=num_labels, **config[config.network])


def _network(name) -> Callable[..., nn.Module]:
  """Loads no other network."""
  if name == 'convnet':
    from repjax.models import unfolded_conv_net

    return unfolded_conv_net.UnfoldedConvNet
  if name == 'mlp':
    from repjax.models import mlp

    return mlp.Mlp
  if name == 'vit':
    from repjax.models import vit

    return vit.ViT
  from repjax.models import resnet

  return resnet.ResNet if name == 'resnet' else resnet.PreActResNet


def transform(config: Any) -> transforms.Transform:
  """What a method does to training images, uint8, before they are scaled."""
  if config.method == 'hue':
    from repjax.data.images import hues

    return hues.random_hue()
  if config.method == 'crop':
    return transforms.compose(
      transforms.random_crop(config.crop.padding), transforms.random_flip()
    )
  if config.method == 'rand_augment':
    from repjax.data.images import randaugment

    return randaugment.rand_augment(
      config.rand_augment.layers, config.rand_augment.magnitude
    )
  if config.method == 'auto_augment':
    from repjax.data.images import auto_augment

    return auto_augment.auto_augment()
  if config.method == 'augmix':
    from repjax.data.images import augmix

    return augmix.augmix(config.augmix.severity, views=('image',))
  return transforms.compose()


def make(
  config: Any,
  *,
  num_labels: int,
  group_counts: Sequence[int],
  steps: int,
  optimizer: types.Optimizer = optax.adam,
) -> types.Method:
  """The method that a config names.

  Args:
    config: With `method`, a group of settings for each that has some, `network`
      and `tx`.
    num_labels: C.
    group_counts: Training rows of each value, [A]: the domains. One without any
      has no weight in GroupDRO, and no output in the adversary of DANN.
    steps: Number of updates, over which the rate decays, if it does.
    optimizer: Of all of them.
  """
  tx = config.tx
  rate = tx.learning_rate
  if tx.decay:
    rate = optax.cosine_decay_schedule(rate, steps)
  types.check_choice('config.method', config.method, NAMES)
  settings = dict(config.step)
  make = erm.make
  if config.method not in _AS_ERM:
    make = _maker(config, num_labels, group_counts)
    if settings.pop('microbatches') != 1:
      raise InputError(
        f'config.step.microbatches must be 1: {config.method} compares rows.'
      )
  made = make(network(config, num_labels), optimizer(rate), **settings)
  if config.method == 'bn_adapt':
    from repjax.adapt import bn_adapt

    return bn_adapt.predictor(
      made, num_groups=len(group_counts), **config.bn_adapt
    )
  return made


def _maker(config, num_labels, group_counts) -> Callable[..., types.Method]:
  """`make` of a method that is more than ERM; loads no other."""
  groups: dict[str, Any] = dict(num_groups=len(group_counts))
  counted = dict(groups, group_counts=group_counts)
  if config.method == 'irm':
    from repjax.methods import irm

    return functools.partial(irm.make, **groups, **config.irm)
  if config.method == 'coral':
    from repjax.methods import coral

    return functools.partial(coral.make, **groups, **config.coral)
  if config.method == 'dann':
    from repjax.methods import dann

    # The authors' adversary reads logits; this one the features, as in the
    # paper of DANN.
    adversary = dann.Adversary(
      int(np.count_nonzero(group_counts)), features=tuple(config.dann.features)
    )
    return functools.partial(
      dann.make, **counted, weight=config.dann.weight, adversary=adversary
    )
  if config.method == 'sagnet':
    from repjax.methods import sagnet

    return functools.partial(
      sagnet.make, num_classes=num_labels, **config.sagnet
    )
  if config.method == 'domain_mixup':
    from repjax.methods import domain_mixup

    return functools.partial(
      domain_mixup.make,
      **groups,
      num_classes=num_labels,
      **config.domain_mixup,
    )
  from repjax.methods import group_dro

  return functools.partial(group_dro.make, **counted, **config.group_dro)


def with_error_weights(config: Any, data: of_images.Data) -> of_images.Data:
  """Training rows of the second training of JTT, with a column 'weight'.

  Predicts all of them once by the run `config.jtt.first`, ERM on the same rows
  (in the authors' code of the benchmark half as long).

  Raises:
    InputError: If there is no such run, it is one of another network, or it
      has no error.
  """
  from repjax.methods import jtt

  if not config.jtt.first:
    raise InputError(
      'config.method=jtt trains twice: train config.method=erm first, and name '
      'its work directory by --config.jtt.first.'
    )
  train, recipe, _ = data
  variables = start.from_run(
    config.jtt.first, field='config.jtt.first', which='predicted'
  )
  model = network(config, train.num_classes or 0)
  wanted = jax.eval_shape(
    lambda: model.init(
      jax.random.key(0), jnp.zeros((1, *(recipe.shape or ()))), train=False
    )
  )
  # All collections: flax would not miss a norm that this network lacks.
  trees.check_leaves(
    trees.flatten(variables),
    trees.flatten(wanted),
    what=f'config.jtt.first={config.jtt.first}: its variables',
  )
  evaluate = jax.jit(
    functools.partial(model_inputs.evaluate, model, model_inputs.image)
  )
  size = config.eval_batch_size
  logits, labels = [], []
  for first in range(0, len(train), size):
    # The last batch is filled up, so that there is one shape.
    rows = np.minimum(first + np.arange(size), len(train) - 1)
    columns = recipe.evaluate.apply(
      train.read(rows, decode=recipe.decode_evaluate), np.empty((size, 0))
    )
    mask = np.ones(size, np.float32)
    made = evaluate(variables, {'image': columns['image'], 'mask': mask})
    real = min(size, len(train) - first)
    logits.append(np.asarray(made)[:real])
    labels.append(columns['label'][:real])
  errors = jtt.error_set(np.concatenate(logits), np.concatenate(labels))
  weight = jtt.row_weights(errors, config.jtt.upweight)
  return data._replace(train=train.with_columns(weight=weight))
