"""Device code: the algorithms of WILDS and U-WILDS by name.

Which loader each is trained on, whether it learns from rows without labels, and
its settings are those of the authors' code (`examples/configs/algorithm.py` of
p-lambda/wilds).
"""

from collections.abc import Sequence
from typing import Any
from typing import Literal
from typing import NamedTuple

import flax.linen as nn
import numpy as np
import optax

from repjax import optim
from repjax import trees
from repjax import types
from repjax.methods import erm
from repjax.methods import model_inputs


class Needs(NamedTuple):
  """What an algorithm is trained on, as in WILDS.

  Attributes:
    loader: Rows of 'shuffled' epochs, of 'uniform' groups, or of some 'groups'
      in each batch.
    unlabelled: Whether it 'may' or 'must' learn from rows without labels, too,
      from them 'alone', or does 'not'.
  """

  loader: Literal['shuffled', 'uniform', 'groups']
  unlabelled: Literal['not', 'may', 'must', 'alone']


NEEDS = {
  'erm': Needs('shuffled', 'not'),
  'group_dro': Needs('uniform', 'not'),
  'irm': Needs('groups', 'not'),
  'coral': Needs('groups', 'may'),
  'dann': Needs('groups', 'may'),
  'afn': Needs('shuffled', 'must'),
  'pseudo_label': Needs('shuffled', 'must'),
  'fixmatch': Needs('shuffled', 'must'),
  'noisy_student': Needs('shuffled', 'must'),
  'swav': Needs('shuffled', 'alone'),
  'masked_lm': Needs('shuffled', 'alone'),
}

# Those that teach themselves, whose rate falls from the beginning.
_TEACH = ('pseudo_label', 'fixmatch', 'noisy_student')


def make(
  name: str,
  model: nn.Module,
  config: Any,
  optimizer: types.Optimizer,
  *,
  group_counts: Sequence[int],
  steps: int,
  inputs: model_inputs.Inputs = model_inputs.image,
) -> types.Method:
  """An algorithm with the settings of a config.

  Args:
    name: One of `NEEDS`, but for 'masked_lm', which trains no classifier: it is
      `protocols.pretraining.masked_language_model`.
    model: A linen classifier whose last layer is 'head'.
    config: With the groups `tx` (learning_rate, momentum, weight_decay,
      dann_divisor), `step`, and one of each algorithm's name with its
      settings; for 'dann' `adversary`, too.
    optimizer: (rate, momentum=...) -> the end of the optax chain.
    group_counts: Training rows of each domain, those without a label too, [G]:
      a domain without any has no weight in 'group_dro', and is nothing that the
      adversary of 'dann' tells apart.
    steps: Number of updates.
    inputs: What the model is called with, in place of images.

  Raises:
    InputError: There is no such algorithm for a classifier of these inputs.
  """
  types.check_choice('config.algorithm', name, tuple(NEEDS))
  of_images = inputs is model_inputs.image
  if name in (('masked_lm',) if of_images else ('fixmatch', 'swav')):
    raise types.InputError(
      f'config.algorithm={name} learns from '
      + (
        'text: take configs/wilds_text.py.'
        if of_images
        else 'views of images: take configs/wilds.py.'
      )
    )
  rate = config.tx.learning_rate
  # As PyTorch's: decay is a part of the gradient.
  decay = optax.add_decayed_weights(config.tx.weight_decay)

  def chain(rate):
    return optax.chain(decay, optimizer(rate, momentum=config.tx.momentum))

  groups: dict[str, Any] = dict(num_groups=len(group_counts))
  counted = dict(groups, group_counts=group_counts)
  tx = chain(falling(rate, steps) if name in _TEACH else rate)
  more = {**(config[name] if name != 'erm' else {}), **config.step}
  if name != 'swav':
    more['inputs'] = inputs
  if name == 'erm':
    return erm.make(model, tx, **more)
  # No program loads the others.
  if name == 'group_dro':
    from repjax.methods import group_dro

    return group_dro.make(model, tx, **counted, **more)
  if name == 'irm':
    from repjax.methods import grouped
    from repjax.methods import irm

    # Moments are those of another loss before the weight jumps.
    weight = grouped.annealed(more.pop('weight'), config.irm.at)
    tx = optim.restarted(tx, more.pop('at'))
    return irm.make(model, tx, weight=weight, **groups, **more)
  if name == 'coral':
    from repjax.methods import coral

    return coral.make(model, tx, **groups, **more)
  if name == 'dann':
    from repjax.methods import dann

    slow = chain(rate / config.tx.dann_divisor)
    return dann.make(
      model,
      optax.multi_transform({'features': slow, 'heads': tx}, _heads),
      adversary=dann.Adversary(
        int(np.count_nonzero(group_counts)), **config.adversary
      ),
      **counted,
      **more,
    )
  if name == 'afn':
    from repjax.methods import afn

    return afn.make(model, tx, **more)
  if name == 'pseudo_label':
    from repjax.methods import pseudo_label

    weight = optax.linear_schedule(0.0, 1.0, max(1, 2 * steps // 5))
    return pseudo_label.make(model, tx, weight=weight, **more)
  if name == 'fixmatch':
    from repjax.methods import fixmatch

    return fixmatch.make(model, tx, **more)
  if name == 'swav':
    from repjax.methods import swav

    projection = swav.Projection(more.pop('hidden_dim'), more.pop('dim'))
    # To a thousandth, as in WILDS, where LARC scales the rates of layers.
    tx = chain(optax.cosine_decay_schedule(rate, steps, alpha=1e-3))
    return swav.make(model, tx, projection=projection, **more)
  from repjax.methods import noisy_student

  return noisy_student.make(model, tx, **more)


def falling(rate: float, steps: int) -> optax.Schedule:
  """The rate of U-WILDS for those: rate * (1 + 10 t / steps)^(-3/4)."""
  return lambda step: rate * (1 + 10 * step / steps) ** -0.75


def _heads(params):
  """'heads' of the classifier's head and the adversary, 'features' below."""

  def label(path, leaf):
    del leaf  # Where it is counts.
    above = path[0] == 'adversary' or path[1] == 'head'
    return 'heads' if above else 'features'

  return trees.map_with_path(label, params)
