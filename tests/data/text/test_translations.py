"""Sentences in many languages, read from sets that TFDS has prepared."""

import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds

from configs import gradient_vaccine
from repjax.data.reading import source
from repjax.data.text import tokens
from repjax.data.text import translations
from repjax.types import InputError

# Rows 0 and 3 have German, rows 1 and 3 French; row 2 lacks English.
TALKS = [
  {'en': 'one', 'de': 'eins'},
  {'en': 'two', 'fr': 'deux'},
  {'de': 'drei', 'fr': 'trois'},
  {'en': 'four', 'fr': 'quatre', 'de': 'vier'},
]
BYTES = tokens.Bytes()


class Talks(tfds.core.GeneratorBasedBuilder):
  """In the layout of ted_multi_translate."""

  VERSION = tfds.core.Version('1.0.0')
  code_path = None  # As in repjax.data.sets.digits.

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      disable_shuffling=True,
      features=tfds.features.FeaturesDict(
        {
          'translations': tfds.features.TranslationVariableLanguages(
            languages=('en', 'de', 'fr')
          ),
          'talk_name': tfds.features.Text(),
        }
      ),
    )

  def _split_generators(self, dl_manager):
    return {x: self._generate_examples() for x in ('train', 'test')}

  def _generate_examples(self):
    for row, translated in enumerate(TALKS):
      yield row, {'translations': translated, 'talk_name': 'a talk'}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('talks')
  Talks(data_dir=folder).download_and_prepare(file_format='array_record')
  return str(folder)


@pytest.fixture(scope='module')
def talks(folder):
  return source.load('talks', 'train', data_dir=folder)


def read(rows):
  """[(source, target)] of all rows as text, and the columns."""
  columns = rows.read(np.arange(len(rows)))
  return [
    tuple(BYTES.decode(columns[name][i]) for name in ('source', 'tokens'))
    for i in range(len(rows))
  ], columns


def pairs(rows, languages=('fr', 'de'), length=8):
  return translations.from_pivot(
    rows, pivot='en', languages=languages, tokenizer=BYTES, length=length
  )


def test_each_language_has_the_rows_that_have_it(talks):
  french, german = pairs(talks)
  assert read(french)[0] == [('two', 'deux'), ('four', 'quatre')]
  assert read(german)[0] == [('one', 'eins'), ('four', 'vier')]


def test_rows_have_the_language_marks_and_masks(talks):
  for number, rows in enumerate(pairs(talks)):
    texts, columns = read(pickle.loads(pickle.dumps(rows)))
    for i, (before, after) in enumerate(texts):
      assert columns['source'][i, 0] == BYTES.vocab_size + number
      assert columns['source'][i, len(before) + 1] == tokens.END
      assert columns['source_mask'][i].sum() == len(before) + 2
      assert columns['tokens'][i, 0] == tokens.START
      assert columns['tokens'][i, len(after) + 1] == tokens.END
      expected = np.arange(8)
      expected = (expected > 0) & (expected < len(after) + 2)
      np.testing.assert_array_equal(columns['weights'][i], expected)


def test_long_sentences_are_cut(talks):
  french, _ = pairs(talks, length=4)
  texts, columns = read(french)
  assert texts == [('two', 'deu'), ('fou', 'qua')]
  assert columns['weights'].tolist() == [[0, 1, 1, 1]] * 2


def test_a_column_a_language_gives_the_same():
  both = [row for row in TALKS if 'en' in row and 'fr' in row]
  columns = {
    x: np.array([row[x].encode() for row in both], object) for x in ('en', 'fr')
  }
  rows = source.from_arrays('opus', columns)
  (french,) = pairs(rows, ('fr',))
  assert read(french)[0] == [('two', 'deux'), ('four', 'quatre')]
  with pytest.raises(InputError, match="no sentences in 'de'; it has en, fr"):
    pairs(rows, ('de',))[0].read([0])


def test_sentences_to_learn_subwords_from(talks):
  found = translations.sentences(talks, languages=('en', 'fr'), num_rows=99)
  assert sorted(found) == [
    b'deux',
    b'four',
    b'one',
    b'quatre',
    b'trois',
    b'two',
  ]
  assert translations.sentences(talks, languages=('fr',), num_rows=1) == []


def test_a_language_without_rows_is_named(talks):
  with pytest.raises(InputError, match="both 'en' and 'sv'"):
    pairs(talks, ('fr', 'sv'))


def test_a_config_trains_on_a_prepared_set(folder):
  config = gradient_vaccine.get_config()
  config.data.update(
    dict(
      name='talks',
      dir=folder,
      eval_splits=('test',),
      languages=('fr', 'de'),
      vocab_size=270,
      length=16,
    )
  )
  config.batch_size = 200
  experiment = gradient_vaccine.build(config)
  batch = experiment.train.batch(0)
  assert batch['tokens'].shape == batch['source'].shape == (200, 16)
  # The first token of the source tells the task.
  np.testing.assert_array_equal(
    batch['source'][:, 0] - batch['source'][:, 0].min(), batch['task']
  )
  assert set(batch['task']) == {0, 1}
  test = experiment.evals('test').batch(0)
  assert test['mask'].sum() == 4
  columns = {x: y[test['mask'] > 0] for x, y in test.items()}
  # All tokens of French are right, and half of those of German.
  outputs = {
    'nll': columns['weights'].sum(1),
    'tokens': columns['weights'].sum(1),
    'hits': columns['weights'].sum(1) / (1 + columns['task']),
  }
  measured = experiment.measure(outputs, columns)
  assert measured['accuracy_fr'] == 1 and measured['accuracy_de'] == 0.5
  assert measured['mean_task_accuracy'] == 0.75


def test_a_config_says_how_to_prepare_its_set(tmp_path):
  config = gradient_vaccine.get_config()
  config.data.dir = str(tmp_path)
  with pytest.raises(InputError, match='prepare --name=ted_multi_translate'):
    gradient_vaccine.build(config)
