"""Characters of authors: habits are somebody's, and users can be protected."""

import launching
import numpy as np
import pytest

from repjax.data.batches import users
from repjax.data.reading import source
from repjax.data.sets import handwriting


@pytest.fixture(scope='module')
def train():
  return source.load('handwriting', 'train').columns()


def test_rows_belong_to_authors_who_are_on_one_side(train):
  test = source.load('handwriting', 'test').columns()
  assert train['image'].shape[1:] == (16, 16, 1)
  counts = np.bincount(train['author'])
  assert len(counts) == 1000 and counts.min() == 2
  assert 7 < counts.mean() < 9 and counts.max() > 20
  assert sorted(set(test['author'].tolist())) == list(range(1000, 1200))
  for columns in (train, test):
    shares = np.bincount(columns['label']) / len(columns['label'])
    assert len(shares) == 10
    np.testing.assert_allclose(shares, 0.1, atol=0.035)


def test_an_author_is_always_the_same(train):
  image, label = handwriting.written_by(7)
  of_seven = train['author'] == 7
  assert sorted(map(bytes, image)) == sorted(
    map(bytes, train['image'][of_seven])
  )
  assert sorted(label) == sorted(train['label'][of_seven])


def test_authors_have_habits(train):
  # The nearest other character of the same class is the same author's far more
  # often than chance has it: one of some 85.
  chosen = train['label'] == 0
  pixels = train['image'][chosen].reshape(chosen.sum(), -1).astype(np.float32)
  author = train['author'][chosen]
  squares = (pixels**2).sum(1)
  distances = squares[:, None] + squares - 2 * pixels @ pixels.T
  np.fill_diagonal(distances, np.inf)
  repeated = np.bincount(author)[author] > 1
  same = (author[distances.argmin(1)] == author)[repeated]
  assert same.mean() > 0.5


def test_authors_are_protected_together(tmp_path):
  code, output = launching.call(
    'train',
    '--config=configs/dp_finetuning.py:smoke',
    f'--workdir={tmp_path}',
    '--config.data.name=handwriting',
    '--config.dp.user_column=author',
    '--config.dp.rows_per_user=4',
  )
  assert code == 0, output
  privacy = launching.report(tmp_path)['privacy']
  assert privacy['unit'] == users.UNIT and privacy['epsilon'] <= 3
