"""A config of a private run has no field that counts for nothing unsaid."""

import numpy as np
import pytest

from configs import dp_finetuning
from configs import dp_tuning
from configs.parts import private
from repjax import types
from repjax.data.reading import source

ROWS = 1437


def plan_of(**fields):
  config = dp_finetuning.get_config('small')
  config.dp.accountant = 'rdp'
  config.update_from_flattened_dict(fields)
  return private.plan_of(config, ROWS)


@pytest.mark.parametrize('preset', ['small', 'mnist'])
@pytest.mark.parametrize('size', [64, 512])
def test_a_batch_size_beside_a_rate_is_refused_by_both_names(preset, size):
  config = dp_finetuning.get_config(preset)
  config.batch_size = size
  with pytest.raises(types.InputError) as error:
    private.plan_of(config, ROWS)
  said = str(error.value)
  assert 'config.batch_size=' in said and 'config.dp.sampling_rate=' in said
  assert '\n' not in said


@pytest.mark.parametrize('size', [64, 256, 512])
def test_without_a_rate_the_batch_size_decides(size):
  plan = plan_of(batch_size=size, **{'dp.sampling_rate': 0.0})
  assert plan.rate * plan.num_rows == pytest.approx(size)


@pytest.mark.parametrize('rate', [0.1, 0.2])
def test_a_rate_alone_decides_and_its_batch_size_may_be_said(rate):
  plan = plan_of(**{'dp.sampling_rate': rate})
  assert plan.rate == rate
  again = plan_of(batch_size=round(rate * ROWS), **{'dp.sampling_rate': rate})
  assert again == plan


@pytest.mark.parametrize('recipe', [dp_finetuning, dp_tuning])
def test_more_steps_than_those_of_the_epochs_are_refused(recipe):
  config = recipe.get_config('small')
  config.min_steps = 1000
  with pytest.raises(types.InputError, match=r'config.min_steps=1000 counts'):
    recipe.build(config)


def test_images_have_no_adapter():
  config = dp_finetuning.get_config('small')
  config.adapter.kind = 'lora'
  with pytest.raises(types.InputError, match=r"config.adapter.kind='lora'"):
    dp_finetuning.build(config)


@pytest.mark.parametrize(
  ('size', 'cells'),
  [
    ((8, 8), (4, 4)),
    ((28, 28), (7, 7)),
    ((32, 32), (8, 8)),
    ((64, 64), (8, 8)),
    ((48, 64), (12, 16)),
    ((9, 9), (9, 9)),
  ],
)
def test_cells_divide_images_of_any_size(size, cells):
  rows = source.from_arrays(
    'mine', {'image': np.zeros((2, *size, 1), np.uint8)}
  )
  features = private.features(dp_finetuning.get_config('small'), rows)
  made = features.apply(rows.columns(), np.empty((2, 0)))
  assert made['image'].shape == (2, *cells, 8)
