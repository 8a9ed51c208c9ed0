"""Random folders in the form in which WILDS publishes its sets."""

import csv

import numpy as np
from PIL import Image

from repjax.benchmarks.wilds import satellite_sets
from repjax.benchmarks.wilds import text_sets


def table(path, columns, *, index=False):
  """Writes a CSV file of columns, as pandas does."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open('w', newline='', encoding='utf-8') as stream:
    writer = csv.writer(stream)
    writer.writerow([''] * index + list(columns))
    for i, row in enumerate(zip(*columns.values(), strict=True)):
      writer.writerow([i] * index + list(row))


def release(folder):
  """The file by which PyPI's `wilds` knows that a folder is whole."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / f'RELEASE_v{folder.name.rpartition("_v")[2]}.txt').write_text('')
  return folder


def png(path, image):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(image).save(path)


def camelyon17(root, rows=60, seed=0, *, unlabelled=False, images=False):
  rng = np.random.default_rng(seed)
  name = 'camelyon17_unlabeled' if unlabelled else 'camelyon17'
  folder = release(root / f'{name}_v1.0')
  (folder / 'patches').mkdir(exist_ok=True)
  centre = np.resize(np.arange(5), rows)
  columns = dict(
    patient=[f'{x:03d}' for x in rng.integers(100, size=rows)],
    node=rng.integers(5, size=rows),
    x_coord=np.arange(rows),
    y_coord=rng.integers(9999, size=rows),
    tumor=np.full(rows, -1) if unlabelled else rng.integers(2, size=rows),
    slide=centre * 10 + rng.integers(10, size=rows),
    center=centre,
    split=rng.integers(2, size=rows),
  )
  if not unlabelled:
    columns['slide'][7] = 23
  table(folder / 'metadata.csv', columns, index=True)
  if images:
    for p, n, x, y in zip(*list(columns.values())[:4], strict=True):
      place = f'patient_{p}_node_{n}'
      png(
        folder / 'patches' / place / f'patch_{place}_x_{x}_y_{y}.png',
        rng.integers(256, size=(96, 96, 3), dtype=np.uint8),
      )


def waterbirds(root, rows=50, seed=0):
  rng = np.random.default_rng(seed)
  folder = release(root / 'waterbirds_v1.0')
  columns = dict(
    img_id=np.arange(1, rows + 1),
    img_filename=[f'birds/{i}.jpg' for i in range(rows)],
    y=rng.integers(2, size=rows),
    split=np.resize(np.arange(3), rows),
    place=rng.integers(2, size=rows),
    place_filename=['/x.jpg'] * rows,
  )
  table(folder / 'metadata.csv', columns)
  for i in range(rows):
    size = rng.integers(8, 12, size=2)
    png(folder / 'birds' / f'{i}.jpg', np.full((*size, 3), i, np.uint8))


def iwildcam(root, rows=80, seed=0, *, unlabelled=False):
  rng = np.random.default_rng(seed)
  name = 'iwildcam_unlabeled_v1.0' if unlabelled else 'iwildcam_v2.0'
  folder = release(root / name)
  (folder / ('images' if unlabelled else 'train')).mkdir(exist_ok=True)
  times = [
    f'2013-0{1 + i % 9}-1{i % 10} 0{i % 10}:1{i % 10}:2{i % 10}.000'
    for i in range(rows)
  ]
  columns = dict(
    datetime=times,
    location_remapped=rng.permutation(np.resize(np.arange(7), rows)),
    sequence_remapped=rng.permutation(np.resize(np.arange(20), rows)),
    y=rng.permutation(np.resize(np.arange(6), rows)),
  )
  if unlabelled:
    columns['datetime'][3] = ''
    columns['y'][:4] = [-1, 99999, 2, 0]
    columns['uid'] = [f'u{i}' for i in range(rows)]
  else:
    columns['filename'] = [f'{i}.jpg' for i in range(rows)]
    splits = ['train', 'val', 'test', 'id_val', 'id_test']
    columns['split'] = np.resize(splits, rows)
  table(folder / 'metadata.csv', columns)


def civilcomments(root, rows=400, seed=0, *, unlabelled=False):
  rng = np.random.default_rng(seed)
  name = 'civilcomments_unlabeled' if unlabelled else 'civilcomments'
  folder = release(root / f'{name}_v1.0')
  # pandas, by which PyPI's `wilds` reads, makes NaN of texts such as 'None'.
  text = [f'So "{i}",\nhe said, é' for i in range(rows)]
  columns = dict(comment_text=text, toxicity=rng.random(rows))
  if unlabelled:
    table(
      folder / 'unlabeled_data_with_identities.csv',
      {**columns, 'id': np.arange(rows)},
      index=True,
    )
    return
  columns['split'] = np.resize(['train', 'val', 'test'], rows)
  fields = (*text_sets.IDENTITIES, *text_sets._AUXILIARY)
  columns |= {x: rng.random(rows).round(3) for x in fields}
  columns['male'] = [x if i % 5 else '' for i, x in enumerate(columns['male'])]
  table(folder / 'all_data_with_identities.csv', columns, index=True)


def amazon(root, rows=300, seed=0, *, scheme='user'):
  rng = np.random.default_rng(seed)
  folder = release(root / 'amazon_v2.1')
  columns = dict(
    reviewerID=[f'A{x}' for x in rng.integers(30, size=rows)],
    asin=[f'B{x}' for x in rng.integers(40, size=rows)],
    overall=rng.integers(1, 6, size=rows).astype(float),
    reviewYear=rng.integers(2003, 2018, size=rows),
    category=rng.choice(['Books', 'Home, garden', 'Toys'], rows),
    reviewText=[f'It is "{i}", I\nthink' for i in range(rows)],
  )
  table(folder / 'reviews.csv', columns)
  # Without labels the rows are others of the same file.
  split = rng.integers(-1, 5 if scheme in ('user', 'time') else 3, size=rows)
  split[: rows // 4] = 11 + np.arange(rows // 4) % 3
  table(folder / 'splits' / f'{scheme}.csv', dict(split=split))


def fmow(root, rows=400, seed=0):
  rng = np.random.default_rng(seed)
  folder = release(root / 'fmow_v1.1')
  (folder / 'images').mkdir(exist_ok=True)
  year = rng.integers(2002, 2018, size=rows)
  columns = dict(
    split=rng.choice(['train', 'val', 'test', 'seq'], rows),
    img_filename=['x.jpg'] * rows,
    category=rng.choice(satellite_sets.CATEGORIES, rows),
    country_code=rng.choice(['FRA', 'KEN', 'JPN', 'USA', 'XKX'], rows),
    timestamp=[f'{x}-0{1 + x % 9}-15T10:20:30Z' for x in year],
  )
  table(folder / 'rgb_metadata.csv', columns)
  codes = {
    'alpha-3': ['FRA', 'KEN', 'JPN', 'USA'],
    'region': ['Europe', 'Africa', 'Asia', 'Americas'],
  }
  table(folder / 'country_code_mapping.csv', codes)


def poverty(root, rows=4000, seed=0, *, unlabelled=False):
  rng = np.random.default_rng(seed)
  name = 'poverty_unlabeled_v1.0' if unlabelled else 'poverty_v1.1'
  folder = release(root / name)
  (folder / 'images').mkdir(exist_ok=True)
  columns = dict(country=rng.choice(satellite_sets.COUNTRIES, rows))
  if not unlabelled:
    columns |= dict(
      wealthpooled=rng.normal(size=rows),
      urban=rng.choice(['True', 'False'], rows),
    )
  file = 'unlabeled_metadata.csv' if unlabelled else 'dhs_metadata.csv'
  table(folder / file, columns)
  np.savez(
    folder / 'images' / 'landsat_poverty_img_3.npz',
    x=rng.normal(size=(8, 224, 224)),
  )
