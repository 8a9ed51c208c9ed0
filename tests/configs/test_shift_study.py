"""What the study of fine-grained shifts chooses, and by which rows."""

import jax
import numpy as np
import pytest

from configs.parts import shift_pretraining
from configs.parts import shift_study
from configs.parts import shift_tables
from configs.studies import fine_grained_shift as study
from repjax import types
from repjax.benchmarks import fine_grained_shift as shifts
from repjax.benchmarks import shift_training
from repjax.data.images import transforms
from repjax.data.reading import source as sources
from repjax.protocols import side_by_side


def _arms(num_rows=40, num_valid=20):
  rng = np.random.default_rng(0)
  held_out = {
    'label': rng.integers(3, size=num_rows),
    'group': np.arange(num_rows) % 3,
  }
  # Two shifts and two seeds.
  cells = shift_training.Cells({}, (7, 8, 7, 8), (), np.zeros((4, 1, 1), int))
  return shift_study.Arms(cells, None, held_out, 3, 3, num_valid)


def _logits(label, right):
  """Logits that are right where they are told to be, [..., N, 3]."""
  return np.eye(3)[np.where(right, label, (label + 1) % 3)]


def test_a_weight_is_chosen_for_each_shift_and_never_by_the_test(monkeypatch):
  arms = _arms()
  label = arms.held_out['label']
  right = np.zeros((2, 4, 40), bool)  # [weights, shifts * seeds, N]
  right[0, :2, :18] = True  # The first weight is better on the first shift,
  right[1, :2, :10] = True
  right[0, 2:, :5] = True  # the second one on the second,
  right[1, 2:, :19] = True
  right[1, :2, 20:] = True  # and the test says the contrary.
  right[0, 2:, 20:] = True
  right[0, 1, 20:24] = True  # Seed 8 of the first shift has 4 of 20 right.
  monkeypatch.setattr(
    shift_study, 'trained_logits', lambda *args: _logits(label, right)
  )
  config = study.get_config('smoke')
  found = shift_study.arm(config, 'irm', arms)
  np.testing.assert_allclose(found.valid, [0.9, 0.95])
  np.testing.assert_allclose(found.test, [[0, 0.2], [0, 0]])
  assert (
    found.weights == config.study.weights
  )  # The first one, then the second.
  assert found.tables.shape == (2, 2, 3, 3)
  rows = (label[20:] == 1) & (arms.held_out['group'][20:] == 2)
  np.testing.assert_allclose(
    found.tables[0, 1, 1, 2], right[0, 1, 20:][rows].mean()
  )


def test_the_rate_is_that_of_the_best_erm(monkeypatch):
  arms = _arms()
  label = arms.held_out['label']

  def trained(config, method, arms):
    assert method == 'erm'
    number = {1e-3: 5, 3e-3: 15, 1e-2: 9}[config.tx.learning_rate]
    right = np.broadcast_to(np.arange(40) < number, (1, 4, 40))
    return _logits(label, right)

  monkeypatch.setattr(shift_study, 'trained_logits', trained)
  config = study.get_config('smoke')
  config.study.rates = (1e-3, 3e-3, 1e-2)
  config, erm = shift_study.with_best_rate(config, arms)
  assert config.tx.learning_rate == 3e-3
  np.testing.assert_allclose(erm.valid, 0.75)


def test_digits_are_as_large_as_the_images_and_of_no_telling_colour():
  found = shift_pretraining.coloured_digits(20)
  image = found.columns()['image']
  plain = sources.load('digits', 'train').columns()['image']
  assert image.shape == (len(plain), 20, 20, 3)
  bright = image.max(-1)
  assert (bright[:, [0, 1, 18, 19]] == 0).all()
  assert (bright[:, :, [0, 1, 18, 19]] == 0).all()
  np.testing.assert_array_equal(bright[:, 2:18:2, 2:18:2], plain[..., 0])
  np.testing.assert_array_equal(bright[:, 3:18:2, 3:18:2], plain[..., 0])
  # Each class has all seven colours, about equally often.
  inked = image.max((1, 2)) > 0
  colour = inked @ np.array([4, 2, 1])
  label = found.column('label')
  for digit in range(10):
    counts = np.bincount(colour[label == digit], minlength=8)[1:]
    assert counts.min() > 0.05 * counts.sum()
  with pytest.raises(types.InputError, match='does not shrink'):
    shift_pretraining.coloured_digits(7)


def test_shifts_are_what_their_names_say():
  config = study.get_config('small')
  said = {
    name: shift_tables.conditions(x)
    for name, x in shift_study.named_shifts(config).items()
  }
  common = dict(num_common=1500)
  assert said == {
    'uniform': [shifts.Uniform(1500)],
    'correlated, 0': [shifts.SpuriousCorrelation(num_rare=0, **common)],
    'correlated, 50': [shifts.SpuriousCorrelation(num_rare=50, **common)],
    'correlated, 300': [shifts.SpuriousCorrelation(num_rare=300, **common)],
    'low data': [shifts.LowData(num_rare=30, **common)],
    'unseen': [shifts.UnseenData(**common)],
    'noisy': [
      shifts.SpuriousCorrelation(num_rare=300, **common),
      shifts.LabelNoise(0.3),
    ],
    'few rows': [
      shifts.SpuriousCorrelation(num_rare=50, **common),
      shifts.FixedSize(500, 0.1),
    ],
  }
  # No flag and no shift has changed the config itself.
  assert config.shift.kind == 'correlated'
  assert config.shift.label_noise == 0


def test_cells_with_the_same_domains_train_one_adversary(monkeypatch):
  config = study.get_config('smoke')
  config.study.weights = (0.1,)
  rows = {
    'image': np.zeros((6, 20, 20, 3), np.uint8),
    'label': np.arange(6) % 3,
    'group': np.arange(6) % 3,
  }
  places = tuple(np.array(x) for x in ([0, 1], [0, 1, 2], [3, 4], [5, 4, 3]))
  cells = shift_training.Cells(
    rows, (7, 8, 9, 10), places, np.arange(4).reshape(4, 1, 1)
  )
  trained = []

  def train(name, method, cells, held_out):
    batch = {**rows, 'mask': np.ones(6, np.float32)}
    state = jax.eval_shape(method.init, jax.random.key(0), batch)
    outputs = state.params['adversary']['head']['bias'].shape[0]
    trained.append((outputs, cells.seeds))
    made = {'logits': np.array(cells.seeds)[:, None, None]}
    return side_by_side.Trained(None, made, None, None)

  monkeypatch.setattr(shift_study.shift_training, 'train', train)
  recipe = transforms.AS_IT_IS._replace(evaluate=transforms.compose())
  arms = shift_study.Arms(cells, recipe, {}, 3, 3, 0)
  found = shift_study.trained_logits(config, 'dann', arms)
  assert sorted(trained) == [(2, (7, 9)), (3, (8, 10))]
  assert found.ravel().tolist() == [7, 8, 9, 10]


@pytest.mark.parametrize('preset', ['paper', 'small'])
def test_networks_that_are_adapted_have_norms(preset, monkeypatch):
  made = []

  def make(config, **settings):
    made.append(shift_study.shift_methods.network(config, 3))
    raise InterruptedError

  monkeypatch.setattr(shift_study.shift_methods, 'make', make)
  monkeypatch.setattr(shift_study, '_value_counts', lambda _: np.ones((4, 3)))
  monkeypatch.setattr(
    shift_study.shift_training, 'augmented', lambda cells, *_, **__: cells
  )
  arms = _arms()._replace(recipe=transforms.AS_IT_IS)
  with pytest.raises(InterruptedError):
    shift_study.adapted(study.get_config(preset), arms)
  variables = jax.eval_shape(
    lambda image: made[0].init(jax.random.key(0), image, train=False),
    jax.ShapeDtypeStruct((1, 20, 20, 3), np.float32),
  )
  assert 'batch_stats' in variables
