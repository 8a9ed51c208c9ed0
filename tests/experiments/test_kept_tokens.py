"""Subwords that a run has learned are those that it is evaluated by."""

import csv

import numpy as np
import pytest

from configs import mam_adapter
from configs.parts import text_tasks
from launch.lib import restored
from repjax import run
from repjax import types
from repjax.data.text import tokens
from repjax.experiments import kept_tokens


def _write(folder, extra=()):
  for split, rows in (('train', 60), ('test', 20)):
    with (folder / f'{split}.csv').open('w', newline='') as file:
      writer = csv.writer(file)
      writer.writerow(['review', 'stars'])
      words = ('good', 'bad')
      for i in range(rows):
        writer.writerow([f'a {words[i % 2]} film number {i}', i % 2])
      if split == 'train':
        writer.writerows((x, 0) for x in extra)


def _config(folder):
  config = mam_adapter.get_config('smoke')
  config.adapter.kind = 'full'
  config.data.update(
    kind='sentences',
    name='csv:label=stars',
    dir=str(folder),
    column='review',
    vocab_size=280,
  )
  return config


def test_texts_that_have_come_since_change_no_id(tmp_path):
  _write(tmp_path)
  before = text_tasks.read(_config(tmp_path))
  kept_tokens.companion(before.subwords).begin(tmp_path, 0)
  _write(tmp_path, ['quite another vocabulary zzyzx zzyzx'] * 30)
  config = _config(tmp_path)
  anew = text_tasks.read(config)
  config.run.tokenizer = str(tmp_path / kept_tokens.FILE)
  after = text_tasks.read(config)
  assert after.subwords == before.subwords != anew.subwords
  one, other = (x.sources('test').column('tokens') for x in (before, after))
  np.testing.assert_array_equal(one, other)
  # A run that goes on learned by those that it began with.
  kept_tokens.companion(before.subwords).begin(tmp_path, 5)
  with pytest.raises(types.InputError, match='begun with other subwords'):
    kept_tokens.companion(anew.subwords).begin(tmp_path, 5)
  # One that begins anew in the same folder is another run.
  kept_tokens.companion(anew.subwords).begin(tmp_path, 0)
  assert tokens.Subwords.load(str(tmp_path / kept_tokens.FILE)) == (
    anew.subwords
  )


def test_what_is_not_learned_is_not_kept(tmp_path):
  kept_tokens.companion(tokens.Bytes()).begin(tmp_path, 0)
  assert not list(tmp_path.iterdir())


def test_a_run_is_evaluated_by_the_subwords_that_it_had(tmp_path):
  data, workdir = tmp_path / 'data', tmp_path / 'run'
  data.mkdir()
  _write(data)
  config = _config(data)
  run.fit(
    mam_adapter.build(config),
    config,
    workdir,
    origin={'file': 'configs/mam_adapter.py', 'preset': 'smoke'},
  )
  before = restored.load(str(workdir)).experiment.evals('test').source
  _write(data, ['quite another vocabulary zzyzx zzyzx'] * 30)
  after = restored.load(str(workdir)).experiment.evals('test').source
  np.testing.assert_array_equal(before.column('tokens'), after.column('tokens'))
  anew = mam_adapter.build(config).evals('test').source
  assert not np.array_equal(before.column('tokens'), anew.column('tokens'))
