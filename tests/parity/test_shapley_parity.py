"""Shapley values, maps and graphs against shap, shapiq and networkx."""

import numpy as np
import pytest
from sklearn import datasets
from sklearn import ensemble

from repjax.analysis import games
from repjax.analysis import kernel_shapley
from repjax.analysis import redundancy
from repjax.analysis import shapley

pytestmark = pytest.mark.parity
_DIM = 8


@pytest.fixture(scope='module')
def forest():
  """(probability of class 1, a row, a baseline) of eight columns."""
  rows, label = datasets.load_breast_cancer(return_X_y=True)
  rows = rows[:, :_DIM]
  model = ensemble.RandomForestClassifier(20, random_state=0).fit(rows, label)
  return lambda x: model.predict_proba(x)[:, 1:], rows[10], rows[:3]


@pytest.fixture(scope='module')
def game(forest):
  predict, row, baseline = forest
  players = games.columns(_DIM, baseline)
  return games.masking(predict, players, compiled=False).game(row, 0)


def test_shap_with_all_coalitions(forest, game):
  shap = pytest.importorskip('shap', reason='needs the extra parity')
  predict, row, baseline = forest
  explainer = shap.KernelExplainer(lambda x: predict(x)[:, 0], baseline)
  theirs = explainer.shap_values(
    row[None], nsamples=2**_DIM, l1_reg=False, silent=True
  )[0]
  for ours in (
    shapley.exact(game),
    kernel_shapley.kernel(game, num=2**_DIM),
  ):
    np.testing.assert_allclose(ours.values, theirs, atol=1e-8)
    assert ours.empty == pytest.approx(explainer.expected_value, abs=1e-8)


def test_shap_with_some_coalitions(forest, game):
  shap = pytest.importorskip('shap', reason='needs the extra parity')
  predict, row, baseline = forest
  explainer = shap.KernelExplainer(lambda x: predict(x)[:, 0], baseline)
  true = shapley.exact(game).values
  theirs, ours = [], []
  for seed in range(5):
    np.random.seed(seed)  # noqa: NPY002  (What shap draws with.)
    told = explainer.shap_values(
      row[None], nsamples=100, l1_reg=False, silent=True
    )[0]
    theirs.append(np.square(told - true).mean())
    told = kernel_shapley.kernel(game, num=100, seed=seed)
    ours.append(np.square(told.values - true).mean())
  assert np.mean(ours) < 1.5 * np.mean(theirs)


def test_shapiq_of_the_game_and_of_what_is_masked(game):
  shapiq = pytest.importorskip('shapiq', reason='needs the extra parity')

  def theirs(value):
    class Masked(shapiq.Game):
      def __init__(self):
        super().__init__(n_players=_DIM, normalize=False)

      def value_function(self, coalitions):
        return value(np.asarray(coalitions, bool))

    found = shapiq.ExactComputer(Masked(), n_players=_DIM)('SV', 1)
    return np.asarray([found[(i,)] for i in range(_DIM)])

  told = shapley.exact(game)
  np.testing.assert_allclose(told.values, theirs(game.values), atol=1e-8)
  for i in range(_DIM):
    row = theirs(lambda x, i=i: game.values(x) * x[:, i])
    np.testing.assert_allclose(
      np.delete(told.interactions[i], i), np.delete(row, i), atol=1e-8
    )


def test_networkx_of_random_graphs():
  nx = pytest.importorskip('networkx', reason='needs the extra parity')
  rng = np.random.default_rng(0)
  for _ in range(10):
    weights = rng.random((9, 9)) * (rng.random((9, 9)) < 0.2)
    np.fill_diagonal(weights, 0)
    graph = nx.from_numpy_array(weights, create_using=nx.DiGraph)
    restart = rng.random(9)
    begin = dict(enumerate(restart))
    theirs = nx.pagerank(
      graph, alpha=0.85, personalization=begin, dangling=begin, tol=1e-12
    )
    ours = redundancy.pagerank(weights, restart=restart)
    np.testing.assert_allclose(ours, [theirs[i] for i in range(9)], atol=1e-9)
    found = redundancy.structure(weights > 0, weights)
    groups = nx.strongly_connected_components(graph)
    assert {tuple(x) for x in found.groups} == {
      tuple(sorted(x)) for x in groups if len(x) > 1
    }
