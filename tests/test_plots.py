"""What stands in the figures, read from their artists."""

import io
import itertools

import numpy as np
import pytest

from repjax import matrix_plots
from repjax import plots

_LOGITS = np.log([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
_LABELS = np.asarray([0, 1, 1, 0])  # The last two are mistakes.


def test_one_figure_a_quantity_and_one_line_a_split():
  figures = plots.curves(
    [
      {'step': 1, 'loss': 3.0, 'examples_per_second': 9.0},
      {'step': 2, 'loss': 2.0, 'test/loss': 2.5, 'test/accuracy': 0.5},
    ]
  )
  assert set(figures) == {'loss', 'accuracy'}
  (axes,) = figures['loss'].axes
  drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
  assert drawn == {'train': [[1, 3.0], [2, 2.0]], 'test': [[2, 2.5]]}


def test_the_surest_mistakes_come_first_then_the_least_sure():
  np.testing.assert_array_equal(plots.telling(_LOGITS, _LABELS), [3, 2, 1, 0])
  assert len(plots.telling(_LOGITS, _LABELS, count=2)) == 2


def test_mistakes_stand_out():
  images = np.zeros((4, 3, 3, 1), np.uint8)
  images[2] = 255
  fig = plots.predictions(images, _LOGITS, _LABELS, wrong_rate=0.5, columns=3)
  (axes,) = fig.axes
  titles = [(t.get_text(), t.get_color()) for t in axes.texts]
  assert titles[0] == ('0 (90%)', 'black')
  assert titles[2] == ('0 (60%)\nis 1', 'crimson')
  # Two rows of three: the first two images are black, all around is white.
  page = axes.images[0].get_array()
  assert (page == 0).sum() == 3 * 9
  assert '50.00%' in axes.get_title()


def test_a_row_without_numbers_is_a_mistake():
  logits = np.array([[4.0, 0.0], [np.nan, 0.0], [0.0, 1.0], [np.nan, 1.0]])
  labels = np.array([0, 0, 1, 1])
  found = plots.telling(logits, labels)
  assert set(found[:2]) == {1, 3} and [*found[2:]] == [2, 0]
  images = np.zeros((4, 3, 3, 1), np.uint8)
  (axes,) = plots.predictions(images, logits, labels, wrong_rate=0.5).axes
  colors = [text.get_color() for text in axes.texts]
  assert colors == ['black', 'crimson', 'black', 'crimson']


def test_confusion_counts_pairs():
  (axes,) = plots.confusion(_LOGITS, _LABELS).axes
  counts = {text.get_position(): text.get_text() for text in axes.texts}
  # (prediction, label) -> rows.
  assert counts == {(0, 0): '1', (1, 1): '1', (0, 1): '1', (1, 0): '1'}


def test_reliability_shows_accuracy_at_its_confidence():
  (axes,) = plots.reliability({'model': _LOGITS}, _LABELS).axes
  (line,) = [x for x in axes.lines if x.get_label().startswith('model')]
  np.testing.assert_allclose(
    line.get_xydata(), [[0.6, 0.0], [0.7, 0.0], [0.8, 1.0], [0.9, 1.0]]
  )
  # |0.6| + |0.7| + |0.2| + |0.1| over four rows.
  assert line.get_label() == 'model (ECE 0.400)'


def test_bands_span_the_seeds():
  values = np.asarray([[0.0, 2.0], [1.0, 5.0]])
  (axes,) = plots.seed_curves(
    {'a': (np.asarray([1, 2]), values)}, ylabel='y'
  ).axes
  assert axes.lines[0].get_ydata().tolist() == [1.0, 3.0]
  band = axes.collections[0].get_paths()[0].vertices[:, 1]
  assert (band.min(), band.max()) == (0.0, 5.0)


def _drawn(figure):
  figure.savefig(io.BytesIO(), bbox_inches='tight')  # Places all artists.
  (axes,) = figure.axes
  return axes


def test_a_legend_hides_nothing_and_says_what_a_band_is():
  steps = np.asarray([1, 2])
  axes = _drawn(
    plots.seed_curves({'a': (steps, np.ones((2, 3)))}, ylabel='y', xlabel='x')
  )
  legend = axes.get_legend()
  assert legend.get_window_extent().x0 >= axes.get_window_extent().x1
  assert legend.get_title().get_text() == 'mean, lowest, highest seed'
  # There is no band of one seed.
  axes = _drawn(plots.seed_curves({'a': (steps, np.ones((2, 1)))}, ylabel='y'))
  assert axes.get_legend().get_title().get_text() == ''


@pytest.mark.parametrize('log, axis', [('x', 'x'), ('y', 'y'), (True, 'xy')])
def test_ticks_of_logarithms_are_numbers_that_do_not_overlap(log, axis):
  values = np.asarray([16.0, 32.0, 64.0, 256.0])
  axes = _drawn(
    plots.lines({'a': (values, 1 / values)}, xlabel='x', ylabel='y', log=log)
  )
  scales = {'x': axes.get_xscale(), 'y': axes.get_yscale()}
  assert {x for x, scale in scales.items() if scale == 'log'} == set(axis)
  for name in axis:
    axis_of = axes.xaxis if name == 'x' else axes.yaxis
    labels = [
      label
      for label in axis_of.get_ticklabels(which='both')
      if label.get_text()
    ]
    inside = [float(label.get_text()) for label in labels]
    assert len(inside) >= 2
    boxes = [label.get_window_extent() for label in labels]
    side = 'x0' if name == 'x' else 'y0'
    boxes.sort(key=lambda box: getattr(box, side))
    for one, next_one in itertools.pairwise(boxes):
      assert not one.overlaps(next_one)


def test_many_decades_have_ticks_too():
  axes = _drawn(
    plots.bars(
      {'a': {'x': np.full(2, 1e-30)}, 'b': {'x': np.ones(2)}},
      ylabel='y',
      log=True,
    )
  )
  low, high = axes.get_ylim()
  assert sum(low <= tick <= high for tick in axes.get_yticks()) >= 3


def test_counts_have_whole_ticks():
  axes = _drawn(
    plots.seed_curves({'a': (np.arange(1, 6), np.ones((5, 2)))}, ylabel='y')
  )
  assert all(tick % 1 == 0 for tick in axes.get_xticks())


def test_bars_of_single_values_say_nothing_of_seeds():
  groups = {'blur': {'Tent': np.asarray([0.2])}, 'fog': {'Tent': np.ones(1)}}
  (axes,) = plots.bars(groups, ylabel='error').axes
  assert not axes.collections
  assert axes.get_legend().get_title().get_text() == ''
  groups['fog']['Tent'] = np.ones(2)
  (axes,) = plots.bars(groups, ylabel='error').axes
  assert axes.get_legend().get_title().get_text() == 'mean; points are seeds'


def test_bars_are_means_and_points_are_seeds():
  groups = {
    'one': {'id': np.asarray([0.2, 0.4]), 'ood': np.asarray([0.1, 0.1])},
    'two': {'id': np.asarray([1.0, 0.0]), 'ood': np.asarray([0.6, 0.8])},
  }
  (axes,) = plots.bars(groups, ylabel='accuracy').axes
  heights = [bar.get_height() for bar in axes.patches]
  np.testing.assert_allclose(heights, [0.3, 0.5, 0.1, 0.7])  # By kind.
  centres = [bar.get_x() + bar.get_width() / 2 for bar in axes.patches]
  points = np.concatenate([x.get_offsets() for x in axes.collections])
  np.testing.assert_allclose(points[:, 0], np.repeat(centres, 2), atol=1e-9)
  np.testing.assert_allclose(
    points[:, 1], [0.2, 0.4, 1.0, 0.0, 0.1, 0.1, 0.6, 0.8]
  )
  assert [x.get_text() for x in axes.get_xticklabels()] == ['one', 'two']


def test_bars_of_many_groups_lie_so_that_a_page_has_room_for_them():
  groups = {
    f'group {i}\nof many': {'id': np.asarray([i, i + 0.5]), 'ood': np.ones(2)}
    for i in range(12)
  }
  figure = plots.bars(groups, ylabel='accuracy')
  (axes,) = figure.axes
  assert figure.get_figwidth() < 6
  bars = axes.patches[:12]
  np.testing.assert_allclose(
    [bar.get_width() for bar in bars], np.arange(12) + 0.25
  )
  middles = [bar.get_y() + bar.get_height() / 2 for bar in bars]
  points = np.concatenate([x.get_offsets() for x in axes.collections[:12]])
  np.testing.assert_allclose(points[:, 1], np.repeat(middles, 2), atol=1e-9)
  np.testing.assert_allclose(points[:4, 0], [0, 0.5, 1, 1.5])
  # The first one is above.
  figure.canvas.draw()
  names = axes.get_yticklabels()
  assert names[0].get_text() == 'group 0 of many'
  assert names[0].get_window_extent().y0 > names[1].get_window_extent().y1
  assert axes.get_xlabel() == 'accuracy'


def test_clouds_of_points_keep_their_places():
  (axes,) = plots.lines(
    {'a': (np.asarray([1, 2]), np.asarray([3, 4]))},
    xlabel='x',
    ylabel='y',
    joined=False,
  ).axes
  (cloud,) = axes.collections
  assert cloud.get_offsets().tolist() == [[1, 3], [2, 4]]
  assert cloud.get_label() == 'a'


def test_heatmaps_span_what_lies_off_the_diagonal():
  matrix = np.asarray([[1.0, 0.2], [0.4, 1.0]])
  figure = matrix_plots.heatmaps(
    {'first': matrix, 'second': matrix}, names='ab'
  )
  assert [axes.get_title() for axes in figure.axes] == ['first', 'second']
  for axes in figure.axes:
    (image,) = axes.images
    assert image.get_clim() == (0.2, 0.4)
    numbers = {text.get_position(): text.get_text() for text in axes.texts}
    # (column, row) -> entry.
    assert numbers[1, 0] == '0.20' and numbers[0, 1] == '0.40'


def test_matrices_show_their_numbers():
  values = {'a': np.asarray([[0.25, 1.0], [0.5, 0.75]]), 'b': np.eye(2)}
  values['c'] = np.asarray([[0.997, np.nan], [0.994, 0.001]])
  fig = matrix_plots.matrices(values, xlabel='task', ylabel='after')
  first, second, third = fig.axes
  assert [t.get_text() for t in first.texts] == ['.25', '1', '.50', '.75']
  assert [t.get_text() for t in third.texts] == ['1', '', '.99', '.00']
  assert (first.get_title(), second.get_title()) == ('a', 'b')
  assert (first.get_ylabel(), second.get_ylabel()) == ('after', '')
