"""Parts that are used alone refuse a choice that there is not."""

import jax
import jax.numpy as jnp
import pytest

from repjax import start
from repjax import types
from repjax.analysis import h_divergence
from repjax.attacks import ascent
from repjax.benchmarks.wilds import views
from repjax.data.images import transforms
from repjax.layers import crop_sizes
from repjax.layers import l2_attention
from repjax.methods import coral
from repjax.methods import distribution_calibration
from repjax.methods import domain_mixup
from repjax.methods import gan_losses
from repjax.methods import irm
from repjax.methods import partial_labels

ROWS = jnp.cos(jnp.arange(12.0)).reshape(4, 3)
IDS, MASK = jnp.arange(4) % 2, jnp.ones(4)
SAME = transforms.on_images(lambda image, draws: image, 0)
BASE = distribution_calibration.Base(
  ROWS[:2], jnp.stack([ROWS[1:], ROWS[:3]]), None, None, 1.0
)
BATCH = {'features': ROWS, 'label': IDS, 'group': IDS, 'mask': MASK}

# What is called -> (the argument that chooses, a call with it).
CALLS = {
  'phi of gaps': ('phi', lambda x: h_divergence.combine(MASK, MASK, MASK, x)),
  'a step of an attack': ('norm', lambda x: ascent.direction(ROWS, x)),
  'views of a pair': (
    'first',
    lambda x: views.Views(SAME, SAME, SAME, None).pair(first=x),
  ),
  'size of a crop': (
    'layout',
    lambda x: crop_sizes.crop_size(8, 2.0, 1.0, layout=x),
  ),
  'limits of strides': (
    'layout',
    lambda x: crop_sizes.limits((8,), (8,), 1.0, layout=x),
  ),
  'scores of attention': (
    'kind',
    lambda x: l2_attention.scores(
      ROWS[None, :, None], ROWS[None, :, None], kind=x
    ),
  ),
  'CORAL': (
    'form',
    lambda x: coral.penalty(ROWS, IDS, MASK, num_groups=2, form=x),
  ),
  'IRM': (
    'form',
    lambda x: irm.penalty(ROWS, IDS, IDS, MASK, num_groups=2, form=x),
  ),
  'a calibrated covariance': (
    'on',
    lambda x: distribution_calibration.calibrated(BASE, ROWS[0], on=x),
  ),
  'draws of a class': (
    'on',
    lambda x: distribution_calibration.drawn(
      jax.random.key(0), BASE, ROWS[0], num_drawn=2, on=x
    ),
  ),
  'Mixup of domains': (
    'per',
    lambda x: domain_mixup.mix(
      BATCH,
      jax.random.key(0),
      num_groups=2,
      num_classes=2,
      alpha=1.0,
      per=x,
    ),
  ),
  'loss of a discriminator': (
    'kind',
    lambda x: gan_losses.of_discriminator(MASK, MASK, kind=x),
  ),
  'loss of a generator': (
    'kind',
    lambda x: gan_losses.of_generator(MASK, kind=x),
  ),
  'losses of classes that are ruled out': (
    'kind',
    lambda x: partial_labels.bounded(ROWS, ROWS > 0, kind=x),
  ),
  'parameters of a run': (
    'which',
    lambda x: start.from_run('/nowhere', which=x),
  ),
}


@pytest.mark.parametrize('name', CALLS)
def test_a_misspelt_choice_is_refused_where_a_part_is_used_alone(name):
  argument, call = CALLS[name]
  with pytest.raises(types.InputError, match=f"{argument} .*'mispelt'"):
    call('mispelt')
