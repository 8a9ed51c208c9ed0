"""PiCO finds the right candidate of tables and of texts, as of images."""

import numpy as np
import optax
import pytest

from repjax import loop
from repjax import parallel
from repjax.data import candidates
from repjax.data.batches import in_order
from repjax.data.reading import source
from repjax.methods import model_inputs
from repjax.methods import pico
from repjax.methods import two_views
from repjax.models import mlp
from repjax.models import text_heads

CLASSES, ROWS, BATCH, STEPS = 4, 160, 32, 80
LABEL = np.repeat(np.arange(CLASSES), ROWS // CLASSES)


def table(rng):
  """Rows of six floats around the mean of their class."""
  means = 2 * rng.normal(size=(CLASSES, 6))
  features = means[LABEL] + rng.normal(size=(ROWS, 6))
  return {'features': features.astype(np.float32)}


def texts(rng):
  """Rows of three to six tokens, most of which only their class has."""
  own = 1 + 2 * LABEL[:, None] + rng.integers(0, 2, (ROWS, 6))
  tokens = np.where(rng.random((ROWS, 6)) < 0.7, own, rng.integers(9, 12))
  real = np.arange(6) < rng.integers(3, 7, ROWS)[:, None]
  return {
    'tokens': (tokens * real).astype(np.int32),
    'token_mask': real.astype(np.float32),
  }


TEXT_MODEL = text_heads.Classifier(
  vocab_size=12,
  num_positions=6,
  hidden_dim=16,
  mlp_dim=16,
  num_heads=2,
  num_layers=1,
  dropout_rate=0.1,
  pool='mean',
  pooler=False,
  num_classes=CLASSES,
)
KINDS = {
  'table': (
    table,
    mlp.Mlp(CLASSES, features=(32,)),
    dict(views=two_views.with_noise(0.3), inputs=model_inputs.features),
  ),
  'texts': (
    texts,
    TEXT_MODEL,
    dict(views=two_views.by_dropout(), inputs=model_inputs.text),
  ),
}


@pytest.mark.parametrize(
  'kind', ['table', pytest.param('texts', marks=pytest.mark.dear)]
)
def test_right_candidates_are_found(kind):
  make_rows, model, settings = KINDS[kind]
  drawn = candidates.draw(
    LABEL, candidates.uniform(CLASSES, 0.5)[LABEL], seed=0
  )
  rows = source.from_arrays(
    kind,
    {**make_rows(np.random.default_rng(0)), 'label': LABEL},
    num_classes=CLASSES,
  )
  method = pico.make(
    model,
    optax.adam(3e-3),
    num_rows=ROWS,
    num_classes=CLASSES,
    warmup_steps=10,
    target_momentum=0.8,
    dim=16,
    queue_size=2 * BATCH,
    momentum=0.9,
    prototype_momentum=0.9,
    **settings,
  )
  batches = in_order.train_batches(
    candidates.attached(rows, drawn), batch_size=BATCH, seed=0
  )
  state = loop.fit(method, batches.iterate, steps=STEPS, seed=0)
  targets = np.asarray(parallel.whole(state).extra.targets.values)
  assert not targets[~drawn].any()
  np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-5)
  # Targets that stay uniform have their largest at the first candidate.
  first = (drawn.argmax(1) == LABEL).mean()
  found = (targets.argmax(1) == LABEL).mean()
  assert first < 0.6 and found > 0.95, (first, found)
