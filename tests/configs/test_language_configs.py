"""What configs of language models share, and what they refuse to read."""

import numpy as np
import pytest

from configs import performer
from configs import rfa
from configs.parts import language
from configs.parts import language_study
from configs.studies import performer as performer_study
from configs.studies import rfa as rfa_study
from repjax import run
from repjax.data.own import kept_classes
from repjax.types import InputError


def proteins(path):
  config = performer.get_config('smoke')
  config.update(dict(data=dict(kind='proteins', path=str(path), name='')))
  return config


def test_papers_are_measured_on_one_language_model():
  ours, theirs = (
    module.get_config('small').to_dict()
    for module in (performer_study, rfa_study)
  )
  assert performer_study.SEEDS == rfa_study.SEEDS
  # Weight decay is part of a paper's recipe.
  assert ours['tx'].pop('weight_decay') != theirs['tx'].pop('weight_decay')
  for group in ('model', 'tx', 'step', 'batch_size'):
    assert (group, ours[group]) == (group, theirs[group])
  for name, value in ours['data'].items():
    assert (name, value) == (name, theirs['data'][name])


def test_studies_count_a_pixel_as_a_byte():
  config = performer_study.get_config('smoke')
  config.update(
    dict(data=dict(kind='pixels', name='digits', eval_splits=('test',)))
  )
  data = language.read(config)
  train, test = language_study.rows(config, data, (0, 1))
  images = data.sources('test').column('image').reshape((-1, 64))
  assert train['tokens'].shape == (2, len(data.train), 65)
  np.testing.assert_array_equal(test['tokens'][:, 1:], images)
  assert (test['tokens'][:, 0] == 256).all()
  nll = np.ones((2, len(images), 64), np.float32)
  bits = language_study.bits_per_byte({'nll': nll.sum(-1)}, test)
  np.testing.assert_allclose(bits, 1 / np.log(2), rtol=1e-6)


def test_presets_do_not_write_into_each_other():
  first = performer.get_config('paper').to_dict()
  changed = performer.get_config('smoke')
  changed.data.length = 7
  changed.model.hidden_dim = 4
  assert performer.get_config('paper').to_dict() == first
  assert performer.get_config('smoke').data.length == 32


def test_proteins_are_read_from_the_file_that_is_named(tmp_path):
  rng = np.random.default_rng(0)
  path = tmp_path / 'proteins.fasta'
  with path.open('w') as file:
    for i in range(200):
      file.write(f'>{i}\n{"".join(rng.choice(list("ACDEFG"), 40))}\n')
  experiment = performer.build(proteins(path))
  batch = experiment.train.batch(0)
  assert batch['tokens'].shape == (16, 33)
  assert set(np.unique(batch['tokens'])) <= {1, 3, 4, 5, 6, 7, 8}


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (None, r'missing\.fasta cannot be read'),
    ('', 'holds no sequence'),
    ('MKV\n', 'does not begin with a header'),
    ('>a\nMK1V\n', 'none of letters for amino acids'),
    (f'>a\n{"MKV" * 20}\n', 'none is in the split'),
  ],
)
def test_files_without_proteins_are_refused(content, message, tmp_path):
  path = tmp_path / 'missing.fasta'
  if content is not None:
    path = tmp_path / 'present.fasta'
    path.write_text(content)
  with pytest.raises(InputError, match=message):
    performer.build(proteins(path))


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(data=dict(kind='proteins')), r'config\.data\.path is empty'),
    (dict(data=dict(kind='words')), r"config\.data\.kind .*'words'"),
    (dict(data=dict(name='no_such_text')), 'no_such_text'),
    (dict(data=dict(column='title')), 'title'),
    (dict(data=dict(length=10**7)), 'lower length'),
    (dict(data=dict(eval_stride=64)), 'must be at most length=32'),
    (dict(attention=dict(kind='local')), r"config\.attention\.kind .*'local'"),
    (dict(attention=dict(num_features=0)), 'num_features'),
  ],
)
@pytest.mark.parametrize('module', [performer, rfa])
def test_texts_and_settings_that_cannot_be_are_refused(module, fields, message):
  config = module.get_config('smoke')
  config.update(fields)
  with pytest.raises(InputError, match=message):
    module.build(config)


@pytest.mark.parametrize(
  ('kind', 'columns'),
  [
    ('translation', {'source', 'tokens', 'weights'}),
    ('listops', {'tokens', 'token_mask', 'label'}),
  ],
)
def test_rfa_learns_other_tasks(kind, columns):
  config = rfa.get_config('smoke')
  config.data.kind = kind
  experiment = rfa.build(config)
  assert columns <= set(experiment.train.batch(0))
  (split,) = config.data.eval_splits
  (batch,) = experiment.evals(split)
  assert batch['mask'].sum() == config.data.num_test_rows


def test_classes_are_learned_of_sets_that_have_some():
  config = rfa.get_config('smoke')
  config.data.kind = 'classification'
  with pytest.raises(InputError, match='python_topics has no classes'):
    rfa.build(config)


@pytest.mark.parametrize('kind', ['listops', 'translation'])
def test_generated_rows_are_of_the_split_that_is_asked_for(kind):
  config = rfa.get_config('smoke')
  config.data.update(kind=kind, num_rows=30, num_test_rows=20, length=40)
  made = rfa.build(config)
  column = 'tokens' if kind == 'listops' else 'source'
  read = [
    {tuple(row) for row in made.evals(split).source.column(column)}
    for split in ('validation', 'test')
  ]
  assert [len(x) for x in read] == [20, 20]
  assert not read[0] & read[1]
  with pytest.raises(InputError, match=r'config\.data\.eval_splits'):
    made.evals('nonsense')


def test_classes_of_texts_keep_their_names(tmp_path):
  lines = [f'word {i},{"xy"[i % 2]}' for i in range(20)]
  (tmp_path / 'a.csv').write_text('\n'.join(['text,label', *lines]))
  config = rfa.get_config('smoke')
  config.data.update(
    kind='classification',
    name='csv',
    dir=str(tmp_path / 'a.csv'),
    eval_splits=('test',),
  )
  assert kept_classes.names_of(rfa.build(config)) == ['x', 'y']


def test_runs_count_a_pixel_as_a_byte():
  config = performer.get_config('smoke')
  data = dict(kind='pixels', name='digits', eval_splits=('test',))
  config.update(dict(data=data))
  assert 'test/bits_per_byte' in run.measures(performer.build(config))


def test_tokens_that_see_themselves_alone_have_their_own_values():
  x = np.arange(24.0).reshape(1, 3, 2, 4)
  np.testing.assert_array_equal(performer_study.Alone()(-x, 2 * x, x), x)
