"""Descriptions of units: which one is chosen, and when there is none."""

import csv
import functools

import jax
import numpy as np
import pytest

from repjax import types
from repjax.analysis import milan
from repjax.analysis import unit_pages
from repjax.data.text import words
from repjax.models import describer

_TOKENIZER = words.Words.of(['red squares', 'many blue things'])
_HOW = dict(length=4, width=20)


@pytest.fixture(scope='module')
def made():
  size = dict(embed_dim=4, hidden_dim=6)
  model = describer.Describer(
    describer.Captioner(_TOKENIZER.vocab_size, **size),
    describer.LanguageModel(_TOKENIZER.vocab_size, **size),
  )
  features = np.random.default_rng(0).normal(size=(7, 5, 3))
  init = jax.jit(functools.partial(model.init, train=False))
  variables = init({'params': jax.random.key(0)}, features, np.full((7, 2), 4))
  # As drawn, all captions are about as likely.
  variables = jax.tree.map(lambda x: 4 * x, variables)
  return model, variables, features.astype(np.float32)


@pytest.fixture(scope='module')
def beams(made):
  return milan.search(*made, **_HOW)


def test_lambda_0_is_the_likeliest_caption(beams):
  for row, x in enumerate(milan.choose(beams, _TOKENIZER, strength=0.0)):
    assert x.likelihood == x.score == beams.likelihood[row].max()
    assert x.text == _TOKENIZER.decode(beams.tokens[row, 0])


@pytest.mark.parametrize('strength', [0.2, 1.0])
def test_the_chosen_caption_has_the_best_score(beams, strength):
  scores = beams.likelihood - strength * beams.prior
  for row, x in enumerate(milan.choose(beams, _TOKENIZER, strength=strength)):
    assert x.score == scores[row].max()
    np.testing.assert_allclose(
      x.score, x.likelihood - strength * x.prior, rtol=1e-5
    )


def test_a_larger_lambda_never_chooses_likelier_words(beams):
  priors = [
    [x.prior for x in milan.choose(beams, _TOKENIZER, strength=strength)]
    for strength in (0.0, 0.2, 0.5, 1.0, 2.0)
  ]
  assert (np.diff(priors, axis=0) <= 1e-6).all()
  assert (np.array(priors[-1]) < priors[0]).any()


def test_units_are_described_alike_in_whatever_order_and_parts(made, beams):
  model, variables, features = made
  rng = np.random.default_rng(1)
  units, exemplars = rng.permutation(7), rng.permutation(5)
  other = milan.search(
    model, variables, features[units][:, exemplars], batch_size=3, **_HOW
  )
  np.testing.assert_array_equal(other.tokens, beams.tokens[units])
  np.testing.assert_allclose(
    other.likelihood, beams.likelihood[units], rtol=1e-4
  )


def test_forced_captions_have_the_scores_of_the_beam(made, beams):
  found = [
    x
    for x in milan.choose(beams, _TOKENIZER)
    if len(x.text.split()) < _HOW['length']  # Others are cut off.
  ]
  assert found
  model, variables, features = made
  likelihood, prior = milan.score(
    model,
    variables,
    features[[x.unit for x in found]],
    [x.text for x in found],
    _TOKENIZER,
  )
  np.testing.assert_allclose(
    likelihood, [x.likelihood for x in found], rtol=1e-4
  )
  np.testing.assert_allclose(prior, [x.prior for x in found], rtol=1e-4)


def test_what_random_images_reach_too_is_unknown(beams):
  level = milan.null_level(beams, share=0.5)
  found = milan.choose(beams, _TOKENIZER, level=level)
  states = [x.state for x in found]
  assert set(states) == {'', milan.UNKNOWN}
  assert all((x.evidence < level) == (x.state != '') for x in found)
  named = milan.mentioning(found, *_TOKENIZER.words)
  assert {x.unit for x in named} == {
    x.unit for x in found if not x.state and x.text
  }


def test_a_unit_that_is_never_active_is_not_described(beams):
  is_active = np.arange(7) != 3
  found = milan.choose(
    beams, _TOKENIZER, is_active=is_active, units=range(10, 17)
  )
  assert [x.unit for x in found if x.words == milan.SILENT] == [13]
  assert 13 not in {x.unit for x in milan.mentioning(found, *_TOKENIZER.words)}
  lines = milan.table(found, layer='conv').splitlines()
  assert lines[0] == 'layer,unit,description,evidence,score'
  assert lines[4] == 'conv,13,"never active",,'
  assert len(lines) == 8


def test_an_audit_looks_for_whole_words():
  said = [
    milan.Description(i, text, 0.0, -1.0, -3.0)
    for i, text in enumerate(['red letters', 'lettering', 'Letters'.lower()])
  ]
  assert [x.unit for x in milan.mentioning(said, 'letters')] == [0, 2]
  assert said[0].evidence == 2.0


def test_a_page_shows_units_with_their_masks():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (2, 3, 8, 8, 3)).astype(np.uint8)
  mask = np.zeros((2, 3, 8, 8), bool)
  mask[:, :, 2:4] = True
  shaded = unit_pages.shaded(image, mask, opacity=0.5)
  np.testing.assert_allclose(shaded[:, :, 2:4], image[:, :, 2:4] / 255)
  np.testing.assert_allclose(shaded[:, :, 5], image[:, :, 5] / 510)
  page = unit_pages.page(image, mask, ['red $things', 'unknown'])
  assert [x.get_text() for x in page.axes[0].texts] == [
    'red $things',
    'unknown',
  ]
  with pytest.raises(types.InputError, match='a page needs'):
    unit_pages.page(image, mask, ['one'])


@pytest.mark.parametrize(
  ('features', 'how', 'message'),
  [
    (np.zeros((0, 5, 3)), {}, r'features of units are \[U, k, D\]'),
    (np.full((7, 5, 3), np.nan), {}, 'features of unit 0 are no numbers'),
    (np.zeros((7, 5, 3)), dict(length=0), 'length must be'),
    (np.zeros((7, 5, 3)), dict(width=0), 'width must be'),
  ],
)
def test_bad_input_is_said_in_one_line(made, features, how, message):
  with pytest.raises(types.InputError, match=message):
    milan.search(*made[:2], features, **{**_HOW, **how})


def test_captions_of_unknown_words_are_refused(made, beams):
  model, variables, features = made
  with pytest.raises(types.InputError, match="'purple' in 'purple squares'"):
    milan.score(model, variables, features[:1], ['purple squares'], _TOKENIZER)
  with pytest.raises(types.InputError, match='strength must be'):
    milan.choose(beams, _TOKENIZER, strength=-1.0)
  with pytest.raises(types.InputError, match='2 captions are of 1 units'):
    milan.score(model, variables, features[:1], ['', ''], _TOKENIZER)
  with pytest.raises(types.InputError, match='features of unit 0'):
    milan.score(model, variables, features[:1] * np.nan, [''], _TOKENIZER)
  for name in ('is_active', 'units'):
    with pytest.raises(types.InputError, match=f'{name} has 2 numbers'):
      milan.choose(beams, _TOKENIZER, **{name: [0, 1]})


def test_models_that_give_no_probabilities_describe_nothing(made):
  model, variables, features = made
  broken = jax.tree.map(lambda x: x * np.nan, variables)
  with pytest.raises(types.NonFiniteError, match='parameters finite'):
    milan.search(model, broken, features, **_HOW)


def test_a_table_keeps_quotes():
  said = milan.Description(0, 'a "red" thing', 1.0, 1.0, 1.0)
  rows = csv.reader(milan.table([said], layer='conv').splitlines())
  assert [*rows][1][2] == 'a "red" thing'


@pytest.mark.parametrize('share', [0.05, 0.3, 0.9])
def test_the_level_is_what_a_share_of_units_reaches(beams, share):
  evidence = [x.evidence for x in milan.choose(beams, _TOKENIZER)]
  np.testing.assert_allclose(
    milan.null_level(beams, share=share),
    np.quantile(evidence, 1 - share),
    atol=1e-4,
  )


def test_an_audit_reads_words_however_they_are_written():
  said = [
    milan.Description(i, text, 0.0, -1.0, -3.0)
    for i, text in enumerate(['Red letters.', '(letters)', 'lettering'])
  ]
  assert [x.unit for x in milan.mentioning(said, 'letters')] == [0, 1]
  assert [x.unit for x in milan.mentioning(said, 'Red')] == [0]
