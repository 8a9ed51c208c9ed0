"""One step trains the captioner and the language model as two would."""

import jax
import numpy as np
import optax
import pytest

from repjax import types
from repjax.methods import describing
from repjax.models import describer

_VOCAB = 8


def _method(**settings):
  model = describer.Describer(
    describer.Captioner(_VOCAB, embed_dim=3, hidden_dim=4, dropout_rate=0.0),
    describer.LanguageModel(
      _VOCAB, embed_dim=3, hidden_dim=4, num_layers=1, dropout_rate=0.0
    ),
  )
  tx = optax.sgd(1.0)
  return model, describing.make(model, tx, width=4, **settings)


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(0)
  return dict(
    features=rng.normal(size=(3, 5, 6)).astype(np.float32),
    tokens=np.array(
      [[1, 4, 5, 2, 0], [1, 6, 2, 0, 0], [1, 3, 7, 4, 2]], np.int32
    ),
    mask=np.ones(3, np.float32),
  )


@pytest.mark.parametrize('penalty', [0.0, 1.0])
def test_the_loss_is_what_captions_cost_both_models(batch, penalty):
  model, method = _method(penalty=penalty)
  state = method.init(jax.random.key(0), batch)
  _, sums = jax.jit(method.update)(state, batch, jax.random.key(1))
  tokens = batch['tokens']
  scores = model.apply(
    {'params': state.params}, batch['features'], tokens[:, :-1], train=False
  )
  likelihood, prior, attention = map(np.asarray, scores)
  expected = {'loss': 0, 'nats': 0, 'prior_nats': 0, 'penalty': 0}
  for row, said in enumerate(tokens):
    count = int((said[1:] > 0).sum())
    at = np.arange(count), said[1 : count + 1]
    nats, prior_nats = -likelihood[row][at].mean(), -prior[row][at].mean()
    uneven = ((1 - attention[row, :count].sum(0)) ** 2).mean()
    expected['nats'] += nats
    expected['prior_nats'] += prior_nats
    expected['penalty'] += uneven
    expected['loss'] += nats + prior_nats + penalty * uneven
  for name, value in expected.items():
    np.testing.assert_allclose(sums[name][0], value, rtol=1e-5)
    assert sums[name][1] == 3


def test_the_models_learn_apart(batch):
  _, method = _method()
  state = method.init(jax.random.key(0), batch)
  update = jax.jit(method.update)
  changed = {**batch, 'features': batch['features'] + 1}
  one, _ = update(state, batch, jax.random.key(1))
  other, _ = update(state, changed, jax.random.key(1))
  same = jax.tree.map(
    lambda a, b: bool(np.allclose(a, b)), one.params, other.params
  )
  assert all(jax.tree.leaves(same['language']))
  assert not all(jax.tree.leaves(same['caption']))


def test_predict_describes_by_the_best_of_the_beam(batch):
  model, method = _method(strength=0.5)
  state = method.init(jax.random.key(0), batch)
  found = jax.device_get(jax.jit(method.predict)(state, batch))
  beams = jax.device_get(
    describing.search(
      model, {'params': state.params}, batch['features'], width=4, length=4
    )
  )
  for row in range(3):
    best = (beams.likelihood[row] - 0.5 * beams.prior[row]).argmax()
    np.testing.assert_array_equal(
      found['description'][row], beams.tokens[row, best]
    )
    np.testing.assert_allclose(
      found['evidence'][row],
      beams.likelihood[row, best] - beams.prior[row, best],
      rtol=1e-5,
    )
  assert found['counted'].tolist() == [3, 2, 4]


@pytest.mark.parametrize(
  'settings', [dict(penalty=-1.0), dict(strength=-0.1), dict(strength=np.nan)]
)
def test_settings_out_of_range_are_refused(settings):
  with pytest.raises(types.InputError, match='must be in'):
    _method(**settings)


def test_training_drops_what_it_is_told_to(batch):
  sizes = dict(embed_dim=3, hidden_dim=4, dropout_rate=0.5)
  model = describer.Describer(
    describer.Captioner(_VOCAB, **sizes),
    describer.LanguageModel(_VOCAB, num_layers=2, **sizes),
  )
  method = describing.make(model, optax.sgd(0.0), width=4)
  state, update = method.init(jax.random.key(0), batch), jax.jit(method.update)
  one, other = (update(state, batch, jax.random.key(i))[1] for i in (1, 2))
  for name in ('nats', 'prior_nats'):
    assert abs(one[name][0] - other[name][0]) > 1e-4


def test_predict_sums_what_real_tokens_cost_either_model(batch):
  model, method = _method()
  state = method.init(jax.random.key(0), batch)
  found = jax.jit(method.predict)(state, batch)
  scores = model.apply(
    {'params': state.params},
    batch['features'],
    batch['tokens'][:, :-1],
    train=False,
  )
  for row, said in enumerate(batch['tokens']):
    count = int((said[1:] > 0).sum())
    at = np.arange(count), said[1 : count + 1]
    for name, x in (('nll', scores.likelihood), ('prior_nll', scores.prior)):
      expected = -np.asarray(x)[row][at].sum()
      np.testing.assert_allclose(found[name][row], expected, rtol=1e-5)
