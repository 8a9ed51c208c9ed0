"""MILAN's two models and their beam say what the published code says.

milan_golden.json holds outputs of github.com/evandez/neuron-descriptions,
commit 19c4d58, and of allennlp's beam search, which it calls, for parameters
that `_numbers` gives here. There, log p(d) also counts the token after the end
of a caption, a pad or a second end; 'prior' and 'beam_prior' are by the
published model with a mask without it, which it takes as an argument.
"""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest

from repjax import trees
from repjax.analysis import milan
from repjax.data.text import tokens as tokenizing
from repjax.models import describer

_GOLDEN = {
  name: np.array(x)
  for name, x in json.loads(
    (pathlib.Path(__file__).parent / 'milan_golden.json').read_text('utf-8')
  ).items()
}
_NEVER = [tokenizing.PAD, tokenizing.START]  # Their beam could write them.


class _Numbers:
  """Captions that are numbers with spaces between them."""

  def encode(self, text):
    return [int(x) for x in text.split()]


def _numbers(name, shape):
  places = np.arange(np.prod(shape))
  waves = 1.5 * np.sin(0.7 * places**2 + sum(name.encode()))
  return waves.astype(np.float32).reshape(shape)


@pytest.fixture(scope='module')
def made():
  model = describer.Describer(
    describer.Captioner(11, embed_dim=4, hidden_dim=7),
    describer.LanguageModel(11, embed_dim=4, hidden_dim=5),
  )
  features = _numbers('features', (3, 5, 6))
  shapes = jax.eval_shape(
    lambda x: model.init(
      jax.random.key(0), x, np.zeros((3, 2), np.int32), train=False
    ),
    features,
  )['params']

  def number(path, x):
    name = '/'.join(path).removesuffix('/embedding')
    if 'lstm' in name:
      name = name.removesuffix('/kernel')
    values = _numbers(name, x.shape)
    if name.endswith('head/bias'):
      values[_NEVER] = -50
    return values

  return model, {'params': trees.map_with_path(number, shapes)}, features


def test_given_captions_are_as_likely(made):
  likelihood, prior = milan.score(
    *made, ['3 4 5', '9 3', '10 7 7 8'], _Numbers()
  )
  np.testing.assert_allclose(likelihood, _GOLDEN['likelihood'], atol=1e-4)
  np.testing.assert_allclose(prior, _GOLDEN['prior'], atol=1e-4)


def test_exemplars_get_the_same_attention(made):
  model, variables, features = made
  tokens = np.array([[1, 3, 4], [1, 9, 3], [1, 10, 7]])
  apply = jax.jit(functools.partial(model.apply, train=False))
  found = apply(variables, features, tokens).attention
  np.testing.assert_allclose(found, _GOLDEN['attention'], atol=1e-5)


def test_the_beam_finds_the_same_captions(made):
  beams = milan.search(*made, length=6, width=8)
  # There, a caption that has ended goes on ending.
  ended = np.where(beams.tokens == tokenizing.PAD, tokenizing.END, beams.tokens)
  np.testing.assert_array_equal(ended, _GOLDEN['beams'])
  np.testing.assert_allclose(
    beams.likelihood, _GOLDEN['beam_likelihood'], atol=1e-4
  )
  np.testing.assert_allclose(beams.prior, _GOLDEN['beam_prior'], atol=1e-4)
