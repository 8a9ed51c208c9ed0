"""A family of synthetic languages against translations and counts by hand."""

import numpy as np
import pytest

from repjax.data.sets import grammar
from repjax.data.sets import languages
from repjax.types import InputError

FAMILY = languages.Family(
  tree='(((a:0.1,b:0.1):0.2,c:0.3):0.3,((d:0.2,e:0.2):0.2,f:0.4):0.3)'
)
FIRST = {rule: values[0] for rule, values in languages.RULES.items()}
LAST = {rule: values[-1] for rule, values in languages.RULES.items()}
SENTENCE = 'the+ j0 j1 n3 that v1 a n0 v2 a j1 n4'


def translate(sentence, **rules):
  """Into a language whose words are the source's in capitals."""
  words = ['the+', 'a', 'that', 'n0', 'n3', 'n4', 'v1', 'v2', 'j0', 'j1']
  rules = FIRST | {name.replace('_', ' '): x for name, x in rules.items()}
  language = languages.Language('x', {w: w.upper() for w in words}, rules)
  return language.translate(sentence)


@pytest.mark.parametrize(
  ('rules', 'expected'),
  [
    ({}, 'THE+ J0 J1 N3 THAT V1 A N0 V2 A J1 N4'),
    ({'verb': 'last'}, 'THE+ J0 J1 N3 THAT A N0 V1 A J1 N4 V2'),
    ({'verb': 'first'}, 'V2 THE+ J0 J1 N3 THAT V1 A N0 A J1 N4'),
    ({'adjective': 'after'}, 'THE+ N3 J1 J0 THAT V1 A N0 V2 A N4 J1'),
    ({'determiner': 'after'}, 'J0 J1 N3 THE+ THAT V1 N0 A V2 J1 N4 A'),
    ({'clause': 'before'}, 'THAT V1 A N0 THE+ J0 J1 N3 V2 A J1 N4'),
    ({'noun_number': 'marked'}, 'THE+ J0 J1 N3+ THAT V1 A N0 V2 A J1 N4'),
    ({'adjective_number': 'marked'}, 'THE+ J0+ J1+ N3 THAT V1 A N0 V2 A J1 N4'),
    # Both verbs take the number of the head, not of the object.
    ({'verb_number': 'marked'}, 'THE+ J0 J1 N3 THAT V1+ A N0 V2+ A J1 N4'),
    (LAST, 'V2+ THAT V1+ N0 A N3+ J1+ J0+ THE+ N4 J1 A'),
  ],
)
def test_each_rule_by_hand(rules, expected):
  assert translate(SENTENCE, **rules) == expected


@pytest.mark.parametrize(
  'sentence', ['', 'a n0', 'n0 v1', 'a v1 n0', 'a n0 v1 v2', 'a n0 that n0 v1']
)
def test_what_is_no_sentence_is_refused(sentence):
  with pytest.raises(InputError, match='no sentence'):
    translate(sentence)


def test_relatedness_counts_equal_words_and_rules():
  found = FAMILY.relatedness()
  members = list(FAMILY.languages.values())
  for i, one in enumerate(members):
    for j, other in enumerate(members):
      words = [one.words[x] == other.words[x] for x in one.words]
      rules = [one.rules[x] == other.rules[x] for x in languages.RULES]
      expected = sum(words) / len(words) / 2 + sum(rules) / len(rules) / 2
      assert found[i, j] == pytest.approx(expected)
  np.testing.assert_array_equal(np.diagonal(found), 1)


def test_branches_change_as_much_as_their_lengths_say():
  # Of 29 words and 7 rules. Words are never changed back; rules may be.
  family = languages.Family(tree='(a:0,b:0.25,c:1)')
  a, b, c = family.languages.values()
  same = [sum(a.words[x] == y.words[x] for x in a.words) for y in (b, c)]
  assert same == [29 - 7, 0]
  same = [sum(a.rules[x] == y.rules[x] for x in a.rules) for y in (b, c)]
  assert same == [7 - 2, 0]
  twins = languages.Family(tree='((a,b):0.5,c:0.5)').languages
  assert twins['a'].words == twins['b'].words
  assert twins['a'].rules == twins['b'].rules


def test_cousins_share_less_than_siblings_do():
  related = np.mean(
    [
      languages.Family(
        tree='((a:0.2,b:0.2):0.4,c:0.6)', seed=seed
      ).relatedness()
      for seed in range(20)
    ],
    axis=0,
  )
  assert related[0, 1] > related[0, 2] + 0.2


def test_sources_are_shared_and_targets_are_translations():
  rows = {x: FAMILY.load(x, 40, seed=0) for x in FAMILY.languages}
  columns = {x: y.read(np.arange(40)) for x, y in rows.items()}
  first = columns['a']
  for name, language in columns.items():
    np.testing.assert_array_equal(
      language['source'][:, 1:], first['source'][:, 1:]
    )
    for row in range(40):
      tag, *sentence = FAMILY.decode(language['source'][row]).split()
      assert tag == f'<{name}>'
      assert FAMILY.decode(language['tokens'][row]) == (
        FAMILY.languages[name].translate(' '.join(sentence))
      )
      length = int(language['weights'][row].sum()) + 1
      assert language['tokens'][row, 0] == 1
      assert language['tokens'][row, length - 1] == 2
      assert not language['tokens'][row, length:].any()
      assert language['weights'][row, 0] == 0
      assert language['weights'][row, 1:length].all()
      length = int(language['source_mask'][row].sum())
      assert language['source'][row, length - 1] == 2
  ids = [x for y in columns.values() for x in (y['source'], y['tokens'])]
  assert max(x.max() for x in ids) < FAMILY.vocab_size == len(set(FAMILY.words))


def test_no_language_is_tested_on_what_another_learnt():
  def sentences(language, split, seed):
    columns = FAMILY.load(language, 60, seed=seed, split=split).read(range(60))
    return {FAMILY.decode(x).split(' ', 1)[1] for x in columns['source']}

  train = sentences('a', 'train', 0) | sentences('b', 'train', 1)
  assert len(train) > 100  # Each seed has sentences of its own.
  assert not train & sentences('c', 'test', 0)


def test_a_family_is_a_function_of_its_seed():
  again = languages.Family(tree=FAMILY.tree)
  assert again.words == FAMILY.words and again.languages == FAMILY.languages
  other = languages.Family(tree=FAMILY.tree, seed=1)
  assert other.languages != FAMILY.languages


@pytest.mark.parametrize(
  'tree',
  ['', '(a:2,b)', '(a', 'a:', '(a,b))', '(a b)', '(,a)', '(a(b))', '(a:x)'],
)
def test_what_is_no_tree_is_refused(tree):
  with pytest.raises(InputError, match='is no tree'):
    languages.Family(tree=tree).languages  # noqa: B018


def test_names_must_differ_and_exist():
  with pytest.raises(InputError, match="two languages 'a'"):
    languages.Family(tree='(a,a)').languages  # noqa: B018
  with pytest.raises(InputError, match='there are a, b, c, d, e, f'):
    FAMILY.load('g', 1, seed=0)
  with pytest.raises(InputError, match='no word'):
    FAMILY.encode('n99')


def test_other_grammars_have_words_of_their_own():
  small = grammar.Grammar(num_nouns=2, num_verbs=1, num_adjectives=1)
  family = languages.Family(tree='(a:0.5,b:0.5)', grammar=small)
  assert set(family.languages['a'].words) == {
    *('the', 'the+', 'a', 'a+', 'that', 'n0', 'n1', 'v0', 'j0')
  }
  assert family.length == small.max_words + 2
