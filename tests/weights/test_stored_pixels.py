"""What a preprocessor_config.json says of pixels is compared with a recipe."""

import json

from absl import logging
import pytest

from repjax import types
from repjax.weights import stored_config

HALVES = dict(mean=(0.5,), std=(0.5,))
IMAGENET = dict(
  image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
)


def told(folder, fields, augment, file='model.safetensors'):
  (folder / 'preprocessor_config.json').write_text(json.dumps(fields))
  (folder / file).write_bytes(b'')
  return stored_config.warn_of_other_pixels(folder / file, augment)


def test_other_pixels_are_told_once(tmp_path, caplog):
  with caplog.at_level('WARNING', logger=logging.get_absl_logger().name):
    line = told(tmp_path, IMAGENET, HALVES)
  assert 'config.augment.mean=(0.5,) where image_mean is (0.485, 0.456' in line
  assert 'config.augment.std=(0.5,) where image_std is (0.229, 0.224' in line
  assert '--config.augment.mean' in line
  assert str(tmp_path) in line
  assert caplog.messages == [line]
  assert (
    stored_config.warn_of_other_pixels(tmp_path, HALVES) == line
  )  # The folder, too.


@pytest.mark.parametrize(
  ('fields', 'augment'),
  [
    (IMAGENET, dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))),
    (dict(image_mean=[0.5] * 3, image_std=[0.5] * 3), HALVES),
    (dict(image_mean=0.5, image_std=0.5), HALVES),
    ({}, HALVES),
    (dict(image_mean=None, image_std=None), HALVES),
    (dict(do_normalize=False, **IMAGENET), dict(mean=(0.0,), std=(1.0,))),
    # Of pixels of 0 to 255, or of -1 to 1 by a factor of 2 / 255.
    (dict(do_rescale=False, image_mean=127.5, image_std=127.5), HALVES),
    (dict(rescale_factor=2 / 255, image_mean=[1.0], image_std=[1.0]), HALVES),
  ],
)
def test_the_same_pixels_are_fine(tmp_path, fields, augment):
  assert not told(tmp_path, fields, augment)


def test_one_of_both_is_named_alone(tmp_path):
  line = told(tmp_path, dict(image_mean=[0.5], image_std=[0.25]), HALVES)
  assert 'augment.std=(0.5,) where image_std is (0.25,).' in line
  assert 'image_mean' not in line
  line = told(tmp_path, dict(do_normalize=False), HALVES)
  assert 'image_mean is (0.0,)' in line
  assert 'image_std is (1.0,)' in line


def test_without_such_a_file_nothing_is_said(tmp_path):
  assert not stored_config.warn_of_other_pixels(tmp_path, HALVES)
  assert not stored_config.warn_of_other_pixels(
    tmp_path / 'none.safetensors', HALVES
  )
  assert not told(tmp_path, IMAGENET, HALVES, file='vit.npz')  # Of others.


@pytest.mark.parametrize(
  'fields',
  [
    dict(image_mean='half'),
    dict(image_mean=[0.5, 'x']),
    dict(image_mean={}),
    dict(image_mean=[[0.5, 0.5], [0.5]]),
    dict(image_mean=[0.5] * 4),
    dict(image_mean=[0.5], rescale_factor='x'),
    dict(image_mean=[0.5], rescale_factor=0),
  ],
)
def test_what_cannot_be_compared_is_refused_in_a_line(tmp_path, fields):
  augment = dict(mean=(0.4, 0.5, 0.6), std=(0.5,))
  with pytest.raises(types.InputError, match='preprocessor_config') as error:
    told(tmp_path, fields, augment)
  assert '\n' not in str(error.value)
