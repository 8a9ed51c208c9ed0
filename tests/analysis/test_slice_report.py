"""Pages show the rows that are ranked first, and say what was tested."""

import base64
import io
import re

from matplotlib import image as mpl_image
import numpy as np
import pytest

from repjax import types
from repjax.analysis import slice_report
from repjax.analysis import slice_scores
from repjax.analysis import slice_words


def made(num_ranked=30, **changed):
  rng = np.random.default_rng(0)
  labels = np.arange(30) % 2
  probs = np.eye(2)[np.where(np.arange(30) % 3 == 0, 1 - labels, labels)]
  ranking = rng.normal(size=(num_ranked, 2))
  given = dict(
    class_names=('cat', '<dog>'),
    words=[slice_words.Words(('red', 'old', 'top', 'x'), np.ones(4)), None],
    audits=[
      slice_scores.Audit(12, 0.5, 0.1, 0.001),
      slice_scores.Audit(9, 0.2, 0.1, 0.6),
    ],
    num_images=4,
  )
  page = slice_report.page(ranking, labels, probs, **{**given, **changed})
  return page, ranking, labels


def test_a_page_has_the_first_rows_and_their_errors():
  page, ranking, labels = made()
  first, second = page.slices
  np.testing.assert_array_equal(first.rows, np.argsort(-ranking[:, 0])[:4])
  np.testing.assert_array_equal(first.wrong, first.rows % 3 == 0)
  names = ('cat', '<dog>')
  for row, note in zip(first.rows, first.notes, strict=True):
    assert note.startswith(names[labels[row]])
  assert first.title == 'slice 1: red, old, top'
  assert second.title == 'slice 2'
  assert first.text.startswith('50.0% of 12 rows there are misread')
  assert second.text.startswith('no slice: 20.0%')
  assert page.heading == '33.3% of 30 rows are misread'


def test_rows_may_be_a_part_of_the_images():
  page, ranking, _ = made(rows=np.arange(30) + 100)
  expected = np.argsort(-ranking[:, 0])[:4] + 100
  np.testing.assert_array_equal(page.slices[0].rows, expected)


@pytest.mark.parametrize('channels', [1, 3])
def test_html_has_all_images_inside(channels):
  page, _, _ = made()
  images = np.random.default_rng(0).integers(
    0, 256, (30, 5, 6, channels), np.uint8
  )
  text = slice_report.html(page, images)
  found = re.findall(r'base64,([^"]+)"', text)
  assert len(found) == 8
  pixels = mpl_image.imread(io.BytesIO(base64.b64decode(found[0])))
  expected = np.broadcast_to(images[page.slices[0].rows[0]], (5, 6, 3))
  np.testing.assert_array_equal(np.rint(255 * pixels[..., :3]), expected)
  assert '<dog>' not in text
  assert '&lt;dog&gt;' in text
  assert text.count('class="wrong"') == sum(x.wrong.sum() for x in page.slices)
  assert 'http' not in text


def test_a_figure_has_an_axis_an_image():
  page, _, _ = made()
  fig = slice_report.figure(page, np.zeros((30, 5, 5, 1)))
  assert sum(len(part.axes) for part in fig.subfigs) == 8
  # Grey is as grey as it is.
  for image, most in ((np.full((30, 5, 5, 1), 9, np.uint8), 255), (0.9, 1)):
    rows = np.broadcast_to(image, (30, 5, 5, 1))
    shown = slice_report.figure(page, rows).subfigs[1].axes[0].images[0]
    assert shown.get_clim() == (0, most)


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    (dict(num_ranked=20), '30 labels are given for 20'),
    (dict(class_names=('cat',)), '1 class_names are given for 2'),
    (dict(words=[None]), '1 words are given for 2'),
    (dict(audits=[]), '0 audits are given for 2'),
    (dict(rows=np.arange(3)), '3 rows are given for 30'),
    (dict(num_images=31), 'num_images must be in'),
  ],
)
def test_what_is_missing_is_said(changed, message):
  with pytest.raises(types.InputError, match=message):
    made(**changed)


def test_labels_that_have_no_name_are_refused():
  with pytest.raises(types.InputError, match='least label'):
    slice_report.page(
      np.zeros((4, 1)),
      np.array([0, 1, 1, -1]),
      np.full((4, 2), 0.5),
      class_names=('a', 'b'),
      num_images=2,
    )
