"""What the study of interactions measures, on models that are known."""

import numpy as np
import pytest

from configs import shapley as recipe
from configs.parts import shapley_study as parts
from configs.studies import shapley as study
from launch.lib import results
from repjax import types
from repjax.analysis import games
from repjax.analysis import shapley
from repjax.data.sets import tables


def _formula(rows):
  """Probabilities of the planted formula itself."""
  a, b, c = rows[:, :2], rows[:, 2:5], rows[:, 5:8]
  one = a.max(1) * b.max(1) * np.maximum(c[:, 0], c[:, 1] * c[:, 2])
  return np.stack([1 - one, one], -1)


@pytest.mark.parametrize(
  ('preset', 'rows', 'orders'),
  [('paper', 500, 2000), *((x, 100, 300) for x in ('small', 'divorce'))],
)
def test_the_paper_preset_has_the_published_numbers(preset, rows, orders):
  config = study.get_config(preset).study
  assert (config.num_rows, config.num) == (rows, orders)


@pytest.fixture(scope='module')
def masking():
  players = games.columns(10, np.zeros(10), names=tables.planted().names)
  return games.masking(_formula, players, compiled=False)


def test_the_formula_is_found_and_nothing_else(masking):
  told = shapley.exact(masking.game(np.ones(10)))
  assert parts._as_planted(told, threshold=1e-2)
  # A threshold that joins b and n, and a game in which c1 is not enough.
  assert not parts._as_planted(told, threshold=0.03)
  other = games.Game(
    lambda x: masking.game(np.ones(10)).values(x & x[:, :1]), 10
  )
  assert not parts._as_planted(shapley.exact(other), threshold=1e-2)


def test_what_is_masked_is_as_many_of_each_kind(masking):
  rows = np.ones((3, 10))
  told = [shapley.exact(masking.game(row)) for row in rows]
  found = parts.masked(masking, rows, told, 1e-2, seed=0)
  assert found['masked'] == pytest.approx(0.7)
  assert found['redundant'] == 1.0
  # The three largest values are c1's and those of both a: no b is left.
  assert found['lowest'] == 0.0
  assert found['highest'] == 0.0
  assert found['sinks'] == 1.0  # n1 and n2.
  assert found['sources'] == 0.0
  assert found['half of groups'] == 1.0


def test_errors_fall_as_they_should(masking):
  found = parts.convergence(masking.game(np.ones(10)), (100, 400, 1600), 0)
  assert -0.65 < found['slope'] < -0.35
  assert 0.7 < found['in_errors'] < 1.3
  assert found['residual'] < 1e-12
  assert parts.decreasing() == 1.0


def test_presets_lie_on_what_they_say():
  assert recipe.get_config('compas').data.name == 'compas'
  config = study.get_config('divorce')
  assert (config.study.baseline, config.study.value) == ('value', 3.0)
  assert config.study.planted_rows == 0
  assert study.get_config('small').study.planted_rows > 0
  config.data.name = 'mnist'
  with pytest.raises(types.InputError, match=r'config\.data\.name'):
    recipe.build(config)


def test_absent_columns_have_raw_numbers_brought_to_scale():
  table = tables.split(tables.load('wine'), 'train')
  network = parts.Networks([], np.zeros(0), {}, table, tables.scale(table))
  players = network.players(3.0)
  features = np.full((1, 13), 3.0)
  np.testing.assert_allclose(players.baseline, network.scale(features))
  # The mean of training rows is 0 in their scale.
  mean = tables.scale(table).mean
  np.testing.assert_allclose(network.players(mean).baseline, 0, atol=1e-6)


@pytest.mark.parametrize('kind', ['inputs', 'labelled'])
def test_files_beside_the_table_are_refused(kind):
  config = recipe.get_config('smoke')
  with pytest.raises(types.InputError, match='and no other files'):
    recipe.build(config).evals(f'{kind}:new.csv')


def test_a_slope_of_drawn_orders_needs_its_seeds():
  claims = {'slope': study.CLAIMS['slope']}
  (one,) = results.judge(claims, {'slope': [-0.5]})
  assert one['verdict'] == results.ONE_SEED
  (several,) = results.judge(claims, {'slope': [-0.5, -0.51, -0.49]})
  assert several['verdict'] == results.HOLDS
