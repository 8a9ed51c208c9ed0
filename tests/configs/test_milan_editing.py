"""Taking out units that are called letters: what is counted, and the whole."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.parts import milan_editing
from configs.parts import milan_subjects as subjects
from configs.studies import milan as study


def test_chances_are_counted_within_layers():
  answer = dict(
    low=np.array([3.0, 1.0, 2.0]), high=np.array([10.0, 10.0, -1.0])
  )
  # low: 0 above 1 and 2; high: 1 as much as 0, above 2.
  units = [('low', 0), ('high', 1)]
  assert milan_editing.told(answer, units) == (1 + 1 + 0.5 + 1) / 4
  assert milan_editing.told(answer, [('low', 1)]) == 0.0
  assert milan_editing.told(answer, []) == 0.5


class _Given(nn.Module):
  """Its one layer gives the red of images, and minus their red."""

  @nn.compact
  def __call__(self, image):
    def kernel(rng, shape, dtype):
      del rng
      return jnp.asarray([[1, -1], [0, 0], [0, 0]], dtype).reshape(shape)

    return nn.Conv(2, (1, 1), use_bias=False, kernel_init=kernel, name='maps')(
      image
    )


def test_units_answer_as_much_as_pixels_change():
  config = study.get_config('editing')
  config.subject.valid_rows = 30
  config.augment.mean, config.augment.std = (0.0,), (1.0,)  # Nothing below 0.
  model = _Given()
  found = milan_editing.answers(
    config,
    lambda variables, batch: model.apply(variables, batch['image']),
    model.init(jax.random.key(0), np.zeros((1, 24, 24, 3), np.float32)),
    ('maps',),
    5,
  )['maps']
  bare = subjects.labelled(config, 'valid', 16, 30)
  lettered = subjects.marked(
    bare, rate=1.0, is_right=False, num_classes=4, seed=16
  )
  assert (bare.image != lettered.image).any((1, 2, 3)).all()
  red = bare.image[..., 0].mean((1, 2)) / 255
  change = lettered.image[..., 0].mean((1, 2)) / 255 - red
  np.testing.assert_allclose(found[0], change.mean() / red.std(), rtol=1e-4)
  assert found[1] == 0.0


def test_every_claim_is_measured_by_all_seeds():
  config, smoke = study.get_config('editing'), study.get_config('smoke')
  for group in ('planted', 'captioner', 'language_model', 'describing'):
    config[group].update(smoke[group])
  config.update(batch_size=16, epochs=0.3)
  config.units.k, config.encoder.batch_size = 5, 100
  config.conv_net.channels = (4, 4, 4)
  config.teacher.update(rows=64, steps=2)
  config.subject.update(rows=64, valid_rows=8, test_rows=40, steps=2, draws=2)
  report = study.run(config, (0, 1))
  assert set(milan_editing.CLAIMS) <= set(report.scalars)
  assert {len(x) for x in report.scalars.values()} == {2}
  for name, values in report.scalars.items():
    if name.startswith(('accuracy', 'clean', 'words', 'letters_named')):
      assert ((values >= 0) & (values <= 1)).all(), name
  at = report.scalars
  np.testing.assert_allclose(
    at['recovered'],
    at['accuracy, without letter units'] - at['accuracy, letters learned'],
  )
  assert {'removed', 'arms'} <= set(report.figures)


def test_the_last_layer_is_asked_of_networks_of_its_own(monkeypatch):
  asked = []

  def everything(config, seeds):
    asked.append((config.subject.layers, tuple(seeds)))
    raise StopIteration

  monkeypatch.setattr(milan_editing.training, 'everything', everything)
  for preset in ('editing', 'last_layer'):
    with pytest.raises(StopIteration):
      study.run(study.get_config(preset), study.SEEDS)
  (_, old), (layers, fresh) = asked
  assert layers == ('norm_2',)
  assert old == study.SEEDS
  assert fresh == tuple(range(5300, 5312))
