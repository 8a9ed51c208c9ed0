"""Files as a further split of a set that was trained on."""

import json
import shutil

import numpy as np
from PIL import Image
import pytest
from sklearn import datasets

from repjax import types
from repjax.data.own import opening
from repjax.data.reading import source
from repjax.data.text import labelled_text
from repjax.data.text import tokens


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
  """The embedded digits as files, class by class."""
  root = tmp_path_factory.mktemp('digits')
  found = datasets.load_digits()
  for i in range(60):
    path = root / str(found.target[i]) / f'{i}.png'
    path.parent.mkdir(exist_ok=True)
    grey = np.rint(found.images[i] * (255 / 16)).astype(np.uint8)
    Image.fromarray(grey).convert('RGB').save(path)
  return root


def test_files_with_labels_are_rows_of_the_set(digits):
  rows = source.load('digits', f'labelled:{digits}')
  assert len(rows) == 60 and rows.image_shape == (8, 8, 1)  # Grey, as the set.
  whole = source.load('digits', 'train+test').columns()
  known = {
    x.tobytes(): y for x, y in zip(whole['image'], whole['label'], strict=True)
  }
  read = rows.columns()
  for image, label in zip(read['image'], read['label'], strict=True):
    assert known[image.tobytes()] == label


def test_files_without_labels_have_the_order_of_their_names(digits):
  split = f'inputs:{digits / "3"}'
  rows = source.load('digits', split)
  names = opening.named('digits', split, data_dir='').rows
  assert names == sorted(x.name for x in (digits / '3').iterdir())
  for row, name in enumerate(names):
    with Image.open(digits / '3' / name) as picture:
      wanted = np.asarray(picture.convert('L'))
    np.testing.assert_array_equal(rows.read([row])['image'][0, ..., 0], wanted)
  single = source.load('digits', f'inputs:{digits / "3" / names[0]}')
  assert len(single) == 1


def test_notes_beside_images_are_no_rows(digits, tmp_path):
  shutil.copytree(digits / '3', tmp_path / '3')
  for name in ('notes.txt', 'labels.csv'):
    (tmp_path / name).write_text('a,b\n1,2\n')
  num = len(list((tmp_path / '3').iterdir()))
  for marker in ('inputs', 'labelled'):
    assert len(source.load('digits', f'{marker}:{tmp_path}')) == num


def test_one_image_has_no_label(digits):
  file = next((digits / '3').iterdir())
  with pytest.raises(types.InputError, match='one image, without a label'):
    source.load('digits', f'labelled:{file}')


def test_unknown_classes_are_refused(digits, tmp_path):
  for name in ('3', 'eleven'):
    (tmp_path / name).mkdir()
    source_file = next((digits / '3').iterdir())
    (tmp_path / name / 'a.png').write_bytes(source_file.read_bytes())
  with pytest.raises(types.InputError, match=r"'eleven' \(1\); known are 0, 1"):
    source.load('digits', f'labelled:{tmp_path}')


@pytest.mark.parametrize('marker', ['inputs', 'labelled'])
def test_what_is_not_there(tmp_path, marker):
  with pytest.raises(types.InputError, match='There is no file or folder'):
    source.load('digits', f'{marker}:{tmp_path / "nowhere"}')
  with pytest.raises(types.InputError, match=r'no image|no folders of classes'):
    source.load('digits', f'{marker}:{tmp_path}')
  (tmp_path / 'a.doc').write_text('x')
  with pytest.raises(types.InputError, match='no file that is read here'):
    source.load('digits', f'{marker}:{tmp_path / "a.doc"}')


@pytest.fixture
def reviews(tmp_path):
  path = tmp_path / 'reviews.csv'
  rows = [f'text {i},{"ab"[i % 2]},{i},note {i}' for i in range(20)]
  path.write_text('\n'.join(['review,stars,user,note', *rows]))
  return str(path)


def test_texts_are_read_by_the_columns_of_the_set(reviews, tmp_path):
  new = tmp_path / 'new.jsonl'
  new.write_text('\n'.join(json.dumps({'review': x}) for x in ('p', 'q')))
  rows = labelled_text.load(
    'csv:label=stars',
    f'inputs:{new}',
    column='review',
    tokenizer=tokens.Bytes(),
    length=8,
    data_dir=reviews,
  )
  assert rows.class_names == ('a', 'b')
  encoded = [tokens.Bytes().decode(x[1:2]) for x in rows.read([0, 1])['tokens']]
  assert encoded == ['p', 'q']
  # Evaluation takes labels, with the name that they have in the set.
  with pytest.raises(types.InputError, match="no column 'stars'"):
    source.load('csv:label=stars', f'labelled:{new}', data_dir=reviews)


def test_lines_of_text(reviews, tmp_path):
  (tmp_path / 'new.txt').write_text('first\n\n  second \n')
  split = f'inputs:{tmp_path / "new.txt"}'
  rows = source.load('csv:label=stars', split, data_dir=reviews)
  assert rows.column('review').tolist() == [b'first', b'second']
  found = opening.named('csv:label=stars', split, data_dir=reviews)
  assert found.rows == ['new.txt:1', 'new.txt:3']
  assert found.columns == ['review', 'note']


@pytest.mark.parametrize(
  ('text', 'match'),
  [
    ('{"other": "p"}', 'and none of those of csv:label=stars, note, review'),
    ('{"review": "p", "user": "me"}', "column 'user' holds texts"),
  ],
)
def test_texts_without_the_columns_of_the_set(reviews, tmp_path, text, match):
  (tmp_path / 'new.jsonl').write_text(text)
  with pytest.raises(types.InputError, match=match):
    source.load(
      'csv:label=stars', f'inputs:{tmp_path / "new.jsonl"}', data_dir=reviews
    )


def test_a_folder_of_texts_is_refused(reviews, tmp_path):
  folder = tmp_path / 'texts'
  folder.mkdir()
  (folder / 'a.txt').write_text('text')
  with pytest.raises(types.InputError, match='give one file, a text a line'):
    source.load('csv:label=stars', f'inputs:{folder}', data_dir=reviews)


def test_numbers_are_texts_where_the_set_has_texts(reviews, tmp_path):
  (tmp_path / 'new.csv').write_text('review\n7\n8\n')
  split = f'inputs:{tmp_path / "new.csv"}'
  rows = source.load('csv:label=stars', split, data_dir=reviews)
  assert rows.column('review').tolist() == [b'7', b'8']


def test_features_keep_the_order_of_the_set(tmp_path):
  lines = [f'{i},{10 * i},{i % 2}' for i in range(10)]
  path = tmp_path / 'train.csv'
  path.write_text('\n'.join(['low,high,grade', *lines]))
  new = tmp_path / 'new.csv'
  new.write_text('high,grade,low\n50,1,5\n70,1,7\n')
  for name in ('csv:label=grade', 'csv:label=grade,features=low+high'):
    for marker in ('inputs', 'labelled'):
      rows = source.load(name, f'{marker}:{new}', data_dir=str(path)).columns()
      assert rows['features'].tolist() == [[5, 50], [7, 70]]
      label = int(marker == 'labelled')
      assert rows['label'].tolist() == [label, label]
  new.write_text('high\n50\n')
  with pytest.raises(types.InputError, match="no column 'low'"):
    source.load('csv:label=grade', f'inputs:{new}', data_dir=str(path))


def test_new_files_leave_nothing_in_the_cache(digits, cache_folder):
  source.load('digits', 'train')
  before = set(cache_folder.rglob('*'))
  rows = source.load('digits', f'inputs:{digits}')
  assert len(rows.read(np.arange(60))['image']) == 60
  assert set(cache_folder.rglob('*')) == before
