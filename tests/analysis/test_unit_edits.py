"""Units are switched off, put in order, and removed for good."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import types
from repjax.analysis import unit_edits
from repjax.layers import layer_outputs
from repjax.methods import supervised
from repjax.models import conv_net
from repjax.models import resnet

_WIDTHS = {'norm_0': 4}


@pytest.fixture(scope='module')
def made():
  rng = np.random.default_rng(0)
  model = conv_net.ConvNet(3, channels=(4, 5))
  method = supervised.make(model, optax.sgd(0.1))
  rows = dict(
    image=rng.normal(size=(30, 8, 8, 1)).astype(np.float32),
    label=rng.integers(0, 3, 30),
  )
  state = jax.jit(method.init)(jax.random.key(0), {**rows, 'mask': np.ones(30)})
  return model, method, state, rows


@functools.cache
def _apply(model):
  return jax.jit(functools.partial(model.apply, train=False))


def _accuracy(model, state, rows, params):
  variables = {'params': params, **state.model_state}
  logits = _apply(model)(variables, rows['image'])
  return (np.asarray(logits).argmax(-1) == rows['label']).mean()


@pytest.mark.parametrize('units', [(0,), (1, 3), (0, 1, 2, 3)])
def test_removing_for_good_is_switching_off(made, units):
  model, method, state, rows = made
  chosen = [('norm_0', x) for x in units]
  params = unit_edits.remove(state.params, chosen)
  assert not np.asarray(params['norm_0']['scale'])[list(units)].any()
  off = {k: x[None] for k, x in unit_edits.chosen(chosen, _WIDTHS).items()}
  left = unit_edits.accuracy_without(method.predict, state, rows, off)
  expected = _accuracy(model, state, rows, params)
  np.testing.assert_allclose(left, [expected], rtol=1e-6)
  assert np.asarray(state.params['norm_0']['scale']).all()  # As it was.


@pytest.mark.parametrize(
  ('layer', 'single'),
  [('stem', True), ('stage_0', False), ('stage_0/block_0', False)],
)
def test_a_removed_unit_is_0_or_its_layer_is_refused(layer, single):
  # Of a block with a shortcut, what goes in comes out past all parameters.
  model = resnet.PreActResNet(3, stage_sizes=(1, 1), width=4)
  images = np.random.default_rng(0).normal(size=(5, 8, 8, 3))
  init = jax.jit(functools.partial(model.init, train=False))
  variables = init(jax.random.key(0), images)
  if not single:
    with pytest.raises(types.InputError, match=f'{layer}.* no single layer'):
      unit_edits.remove(variables['params'], [(layer, 1)])
    return
  params = unit_edits.remove(variables['params'], [(layer, 1)])

  @jax.jit
  def maps_of(variables, images):
    return layer_outputs.with_outputs_of(
      lambda: model.apply(variables, images, train=False), (layer,)
    )[1]

  maps = maps_of({**variables, 'params': params}, images)
  assert not np.asarray(maps[layer])[..., 1].any()
  assert np.asarray(maps[layer])[..., 0].any()


def test_the_least_useful_unit_comes_first(made):
  model, method, state, rows = made
  units = [('norm_0', x) for x in range(4)]
  left = {
    x: _accuracy(model, state, rows, unit_edits.remove(state.params, [x]))
    for x in units
  }
  order = unit_edits.least_useful_first(
    method.predict, state, rows, units, _WIDTHS
  )
  assert order == sorted(units, key=lambda x: -left[x])
  assert (
    unit_edits.least_useful_first(method.predict, state, rows, [], _WIDTHS)
    == []
  )


@pytest.mark.parametrize('without', [np.nan, np.inf])
def test_a_row_without_numbers_is_no_hit(made, without):
  _, method, state, rows = made
  rows = {**rows, 'label': np.zeros(30, int)}

  def predict(state, batch):
    logits = method.predict(state, batch)['logits']
    # Rows of class 0, the first of which argmax is, and rows of none.
    of_none = jnp.where(jnp.arange(30) < 12, without, 0.0)
    return {'logits': 0 * logits + of_none[:, None]}

  off = {'norm_0': np.zeros((1, 4), bool)}
  left = unit_edits.accuracy_without(predict, state, rows, off)
  np.testing.assert_allclose(left, [18 / 30], rtol=1e-6)


@pytest.mark.parametrize(
  ('unit', 'message'),
  [
    (('nrom_0', 1), "under 'nrom_0'.*norm_0"),
    (('norm_0', 4), '4 columns, and no unit 4'),
    (('norm_0', -1), 'no unit -1'),
  ],
)
def test_an_unknown_unit_is_refused(made, unit, message):
  with pytest.raises(types.InputError, match=message):
    unit_edits.remove(made[2].params, [unit])
  with pytest.raises(types.InputError, match='no unit'):
    unit_edits.chosen([unit], _WIDTHS)
