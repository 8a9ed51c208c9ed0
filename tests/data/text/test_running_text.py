"""Text to rows: round trips, windows that count each token once."""

import pickle

import numpy as np
import pytest

from repjax.data.batches import in_order
from repjax.data.reading import source
from repjax.data.sets import topics
from repjax.data.text import running_text
from repjax.data.text import tokens
from repjax.types import InputError

TEXTS = [
  'the cat sat on the mat, and the cat sat on the hat\n' * 3,
  'größer, 猫 and ☃\t  two  spaces',
]


@pytest.fixture(scope='module', params=['bytes', 'bpe', 'unigram'])
def tokenizer(request):
  if request.param == 'bytes':
    return tokens.Bytes()
  return tokens.Subwords.train(TEXTS, vocab_size=300, kind=request.param)


def test_every_text_comes_back(tokenizer):
  for given in [*TEXTS, '', '\x00 never seen: ñ 🙂', b'as bytes']:
    ids = tokenizer.encode(given)
    assert ids.dtype == np.int32
    assert ((ids > tokens.END) & (ids < tokenizer.vocab_size)).all()
    assert tokenizer.decode(ids) == tokens.as_text(given)
    special = [tokens.START, *ids, tokens.END, tokens.PAD]
    assert tokenizer.decode(special) == tokens.as_text(given)


def test_subwords_are_fewer_and_survive_files(tokenizer, tmp_path):
  again = pickle.loads(pickle.dumps(tokenizer))
  np.testing.assert_array_equal(
    again.encode(TEXTS[0]), tokenizer.encode(TEXTS[0])
  )
  if isinstance(tokenizer, tokens.Bytes):
    assert len(tokenizer.encode('é')) == 2
    return
  assert len(tokenizer.encode(TEXTS[0])) < len(TEXTS[0])
  tokenizer.save(tmp_path / 'tokenizer.json')
  assert tokens.Subwords.load(tmp_path / 'tokenizer.json') == tokenizer


def test_pairs_are_merged_alike_in_every_run():
  first, again = (tokens.Subwords.train(TEXTS, vocab_size=300) for _ in '12')
  assert first == again


def test_bad_tokenizers_are_refused(tmp_path):
  with pytest.raises(InputError, match='more than 259'):
    tokens.Subwords.train(TEXTS, vocab_size=259)
  with pytest.raises(InputError, match="'bpe' or 'unigram'"):
    tokens.Subwords.train(TEXTS, vocab_size=300, kind='words')
  with pytest.raises(InputError, match='no text'):
    tokens.Subwords.train([''], vocab_size=300)
  (tmp_path / 'bad.json').write_text('{}')
  for name in ('bad.json', 'missing.json'):
    with pytest.raises(InputError, match=name):
      tokens.Subwords.load(tmp_path / name)
  import tokenizers

  foreign = tokenizers.Tokenizer(tokenizers.models.BPE())
  foreign.save(str(tmp_path / 'foreign.json'))
  with pytest.raises(InputError, match='only tokenizers'):
    tokens.Subwords.load(tmp_path / 'foreign.json')


def test_a_stream_begins_every_text():
  ids = running_text.stream(['ab', '', b'c'], tokens.Bytes())
  assert ids.tolist() == [1, 100, 101, 1, 1, 102]
  for nothing in ([], ['', '']):
    with pytest.raises(InputError, match='no text'):
      running_text.stream(nothing, tokens.Bytes())


IDS = np.arange(100, 123, dtype=np.int32)


@pytest.mark.parametrize('stride', [None, 1, 3])
def test_training_windows_hold_what_follows(stride):
  made = running_text.train_windows(IDS, length=5, stride=stride)
  rows = made.read(np.arange(len(made)))['tokens']
  starts = np.arange(0, len(IDS) - 5, stride or 5)
  np.testing.assert_array_equal(rows, [IDS[s : s + 6] for s in starts])
  if stride is None:  # Each token but the first and the rest is a target once.
    targets = rows[:, 1:].ravel()
    np.testing.assert_array_equal(np.sort(targets), IDS[1:21])


def test_training_windows_follow_seed_and_step_and_take_no_memory():
  long = np.arange(200_000, dtype=np.int32)
  made = running_text.train_windows(long, length=1000, stride=1)
  assert len(made) == 199_000  # As an array this would be 800 MB.
  stream = in_order.train_batches(made, batch_size=4, seed=3)
  batch = stream.batch(7)
  np.testing.assert_array_equal(batch['tokens'], stream.batch(7)['tokens'])
  np.testing.assert_array_equal(
    batch['tokens'], batch['index'][:, None] + np.arange(1001)
  )
  assert batch['mask'].tolist() == [1] * 4


@pytest.mark.parametrize('num_tokens', [2, 5, 6, 7, 11, 12, 23])
@pytest.mark.parametrize('stride', [None, 1, 2, 5])
def test_evaluation_counts_every_token_once(num_tokens, stride):
  ids = IDS[:num_tokens]
  made = running_text.eval_windows(ids, length=5, stride=stride)
  batch_rows = []
  for batch in in_order.eval_batches(made, batch_size=4):
    real = batch['mask'] > 0
    batch_rows.append((batch['tokens'][real], batch['weights'][real]))
  rows, weights = (np.concatenate(x) for x in zip(*batch_rows, strict=True))
  targets = rows[weights > 0]
  np.testing.assert_array_equal(np.sort(targets), ids[1:])
  assert not weights[:, 0].any()
  # Every window is a piece of the text; a target has the context promised.
  context = 5 - (stride or 5)
  for row, weight in zip(rows, weights, strict=True):
    real = row != tokens.PAD
    np.testing.assert_array_equal(row[real], row[0] + np.arange(real.sum()))
    if row[0] != ids[0]:
      assert np.flatnonzero(weight)[0] > context


def test_wrong_windows_are_refused():
  with pytest.raises(InputError, match=r'23 tokens, fewer than .* 24'):
    running_text.train_windows(IDS, length=23)
  with pytest.raises(InputError, match=r'stride=6 .* length=5'):
    running_text.eval_windows(IDS, length=5, stride=6)
  with pytest.raises(InputError, match='none to predict'):
    running_text.eval_windows(IDS[:1], length=5)
  with pytest.raises(InputError, match='length=0'):
    running_text.train_windows(IDS, length=0)


def test_padding():
  ids, mask = running_text.pad([IDS[:2], IDS[:3]], length=4)
  assert ids.tolist() == [[100, 101, 0, 0], [100, 101, 102, 0]]
  assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]
  with pytest.raises(InputError, match='longest row has 3 tokens'):
    running_text.pad([IDS[:3]], length=2)
  cut, mask = running_text.pad([IDS[:3]], length=2, truncate=True)
  assert cut.tolist() == [[100, 101]] and mask.all()


def test_python_topics_are_read_whole_and_split_by_blocks():
  from pydoc_data import topics as original

  found = {}
  for split in ('train', 'validation', 'test'):
    rows = source.load('python_topics', split)
    names = [x.decode() for x in rows.column('topic')]
    assert names == sorted(names)
    texts = running_text.load('python_topics', split)
    for name, given in zip(names, texts, strict=True):
      assert given.decode() == original.topics[name]
      found.setdefault(name, []).append(split)
  assert sorted(found) == sorted(original.topics)
  # No long paragraph is in two splits.
  owners = {}
  for name, (split,) in found.items():
    for paragraph in topics._paragraphs(original.topics[name]):
      owners.setdefault(paragraph, set()).add(split)
  assert max(len(x) for x in owners.values()) == 1
  sizes = {
    split: sum(
      len(original.topics[n]) for n, (s,) in found.items() if s == split
    )
    for split in ('train', 'validation', 'test')
  }
  assert min(sizes.values()) > 0.04 * sum(sizes.values())
  assert sizes['train'] > 0.7 * sum(sizes.values())


def test_blocks_join_through_others():
  shared = ['x' * 80, 'y' * 80]
  texts = {
    'a': f'{shared[0]}\n\nown',
    'b': 'alone, but long enough to be the first of all' * 9,
    'c': f'first\n\n{shared[1]}',
    'd': f'{shared[1]}\n \n{shared[0]}',
  }
  assert topics.blocks(texts) == [['b'], ['a', 'c', 'd']]


def test_a_set_whose_row_is_one_whole_text(real_data):
  (given,) = running_text.load(
    'tiny_shakespeare', 'validation', data_dir=real_data
  )
  assert len(given) == 55_770
  ids = running_text.stream([given], tokens.Bytes())
  assert len(ids) == 55_771
  assert running_text.num_bytes([given]) == 55_770
