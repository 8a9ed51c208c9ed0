"""The published network with its real shapes, even and uneven."""

import jax
import numpy as np
import pytest

from configs import mind_the_pad as recipe
from repjax import types
from repjax.analysis import padding
from repjax.data.reading import source
from repjax.experiments import of_images


@pytest.fixture
def imagenet(monkeypatch):
  """A set with ImageNet's classes, in place of the prepared one."""

  def load(config, split):
    assert config.data.name == 'imagenet2012'
    columns = {
      'image': np.zeros((256, 256, 256, 3), np.uint8),
      'label': np.arange(256),
    }
    return source.from_arrays('imagenet2012', columns, num_classes=1000)

  monkeypatch.setattr(of_images, 'load', load)


@pytest.mark.parametrize('mode', ['', 'circular', 'partial'])
def test_a_step_of_the_published_network_has_its_shapes(imagenet, mode):
  config = recipe.get_config('paper')
  config.padding = mode
  method = recipe.build(config).method
  rows = {
    'image': np.zeros((256, 225, 225, 3), np.float32),
    'label': np.zeros(256, np.int32),
    'mask': np.ones(256, np.float32),
  }
  state = jax.eval_shape(method.init, jax.random.key(0), rows)
  # ResNet-50 has 25.6 million parameters.
  assert sum(x.size for x in jax.tree.leaves(state.params)) == 25_557_032
  after, _ = jax.eval_shape(method.update, state, rows, jax.random.key(1))
  assert jax.tree.structure(after) == jax.tree.structure(state)


def test_presets_say_which_sizes_are_even():
  small = recipe.get_config('small')
  net = recipe.network(small, 4)
  side = small.data.side
  assert padding.even_sizes(net, (side, side, 1), train=False)[0] == (25, 33)
  paper = recipe.get_config('paper')
  size = paper.augment.size
  audit = padding.pad_audit(
    recipe.network(paper, 10), (size, size, 3), train=False
  )
  assert all(x.is_even for x in audit)
  gpu = recipe.get_config('gpu')
  audit = padding.pad_audit(recipe.network(gpu, 10), (40, 41, 3), train=False)
  assert all(x.windows[1].is_even for x in audit)
  uneven = [x for x in audit if not x.windows[0].is_even]
  assert len(uneven) == 6  # Two in each stage with a stride.


def test_wrong_padding_is_told_before_training():
  config = recipe.get_config('smoke')
  config.padding = 'mirror'
  with pytest.raises(types.InputError, match='padding mode must be one of'):
    experiment = recipe.build(config)
    batch = experiment.train.batch(0)
    jax.eval_shape(experiment.method.init, jax.random.key(0), batch)
