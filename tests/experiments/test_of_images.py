"""Experiments that classify images: what their rows may not have."""

import dataclasses

import numpy as np
import pytest

from configs import mixup
from repjax import run
from repjax import types
from repjax.data.reading import source
from repjax.experiments import of_images


def test_a_column_that_would_stand_in_for_the_label_is_refused():
  columns = dict(
    image=np.zeros((40, 8, 8, 1), np.uint8),
    label=np.arange(40) % 4,
    target=np.ones((40, 1), np.float32),
  )
  config = mixup.get_config('smoke')
  config.data.name = 'npz'
  data = of_images.data(
    config, source.from_arrays('mine', columns, num_classes=4)
  )
  with pytest.raises(types.InputError, match='column target'):
    of_images.classifier(config, data, None)


@pytest.mark.parametrize(('encoded', 'workers'), [(True, 3), (False, 0)])
def test_workers_decode_what_is_evaluated_if_it_is_encoded(encoded, workers):
  columns = dict(image=np.zeros((8, 8, 8, 1), np.uint8), label=np.arange(8) % 4)
  rows = source.from_arrays('mine', columns, num_classes=4)
  if encoded:
    rows = dataclasses.replace(rows, encoded={'image': (8, 8, 1)})
  config = mixup.get_config('smoke')
  config.data.num_workers = 3
  made = of_images.classifier(
    config, of_images.data(config, rows), None, sources=lambda split: rows
  )
  assert made.evals('test').num_workers == workers


def test_rows_without_numbers_are_wrong_in_the_title_as_in_the_report():
  columns = dict(image=np.zeros((8, 8, 8, 1), np.uint8), label=np.arange(8) % 4)
  rows = source.from_arrays('mine', columns, num_classes=4)
  config = mixup.get_config('smoke')
  made = of_images.classifier(
    config, of_images.data(config, rows), None, sources=lambda split: rows
  )
  logits = np.eye(4, dtype=np.float32)[columns['label']]
  logits[0] = np.nan  # Of class 0, the first of which argmax is.
  found = {'label': columns['label'], 'index': np.arange(8)}
  assert made.measure({'logits': logits}, found)['accuracy'] == 7 / 8
  drawn = made.figures('test', {'logits': logits}, found)
  assert '12.50% of the set' in drawn['predictions'].axes[0].get_title()
  counts = [int(x.get_text() or 0) for x in drawn['confusion'].axes[0].texts]
  assert sum(counts) == 7


@pytest.mark.parametrize('channels', [2, 5])
def test_images_of_any_number_of_channels_have_a_report(tmp_path, channels):
  rng = np.random.default_rng(0)
  np.savez(
    tmp_path / 'a.npz',
    image=rng.integers(0, 256, (80, 8, 8, channels), np.uint8),
    label=np.arange(80) % 4,
  )
  config = mixup.get_config('smoke')
  config.data.update(name='npz', dir=str(tmp_path / 'a.npz'))
  report = run.fit(mixup.build(config), config, tmp_path / 'run')
  assert 'test/accuracy' in report['result']
  assert (tmp_path / 'run' / 'plots' / 'test_predictions.png').exists()
