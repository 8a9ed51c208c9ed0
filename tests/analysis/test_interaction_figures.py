"""Pictures of interactions show what they are given."""

import numpy as np
import pytest

from repjax import types
from repjax.analysis import games
from repjax.analysis import interaction_figures
from repjax.analysis import shapley


def _arrows(fig):
  return [x.arrow_patch for x in fig.axes[0].texts if hasattr(x, 'arrow_patch')]


def test_arrows_are_the_largest_weights_but_none_of_zero():
  weights = np.asarray([[9.0, 2, 0], [0, 9, -1], [0.5, 0, 9]])
  fig = interaction_figures.graph(weights, ('a', 'b', 'c'), title='all')
  arrows = _arrows(fig)
  assert len(arrows) == 3
  widths = [x.get_linewidth() for x in arrows]
  assert widths == sorted(widths, reverse=True)
  reds = [x.get_edgecolor()[0] > x.get_edgecolor()[2] for x in arrows]
  assert reds == [False, True, False]
  fig = interaction_figures.graph(weights, ('a', 'b', 'c'), most=1)
  assert len(_arrows(fig)) == 1
  assert not _arrows(interaction_figures.graph(np.zeros((2, 2)), ('a', 'b')))
  with pytest.raises(types.InputError, match='3 players need'):
    interaction_figures.graph(weights, ('a', 'b'))


def test_bars_are_sorted_by_size():
  told = shapley.exact(games.Game(lambda x: x @ [1.0, -3.0, 2.0], 3))
  axes = interaction_figures.ranking(told, 'abc', most=2).axes[0]
  assert [x.get_text() for x in axes.get_yticklabels()] == ['c', 'b']
  assert [x.get_width() for x in axes.patches] == pytest.approx([2, -3])
  # Equal names, as of tokens, have a bar each.
  axes = interaction_figures.ranking(told, 'aba').axes[0]
  assert [x.get_text() for x in axes.get_yticklabels()] == ['a', 'a', 'b']
  assert len({x.get_y() for x in axes.patches}) == 3
