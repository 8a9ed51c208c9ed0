"""Private fine-tuning of an encoder that was pretrained on public text."""

import math

import numpy as np
import optax
import pytest

from repjax.data.sets import topic_tasks
from repjax.experiments import private
from repjax.models import text_heads
from repjax.protocols import finetuned_text
from repjax.protocols import private_text

ENCODER = dict(
  num_positions=8, hidden_dim=8, mlp_dim=8, num_heads=2, num_layers=1
)
ADAPTER = dict(kind='lora', rank=2, length=2, scale=2.0, hidden_dim=0)


@pytest.fixture(scope='module')
def task():
  """Whether a row has token 5 in it."""
  rng = np.random.default_rng(0)

  def rows(count):
    ids = rng.integers(6, 12, (count, 6)).astype(np.int32)
    label = (np.arange(count) % 2).astype(np.int32)
    ids[label == 1, :3] = 5
    return {
      'tokens': ids,
      'token_mask': np.ones((count, 6), np.float32),
      'label': label,
    }

  public = {
    'tokens': rng.integers(5, 12, (40, 6)).astype(np.int32),
    'weights': np.ones((40, 6), np.float32),
  }
  return topic_tasks.Task(13, 2, public, rows(60), rows(40))


@pytest.fixture(scope='module')
def pretrained(task):
  return private_text.pretrain(
    task, ENCODER, steps=3, batch_size=8, learning_rate=1e-2, seed=0
  )


def test_pretraining_leaves_an_encoder_without_its_head(pretrained):
  assert set(pretrained) == {'token_embedding', 'encoder'}


def test_rates_and_seeds_train_side_by_side(task, pretrained):
  more = {
    # What is held out says the contrary: nobody learns it.
    name: np.concatenate([x, 1 - x[:12] if name == 'label' else x[:12]])
    for name, x in task.train.items()
  }
  plan = private.plan(
    60,
    batch_size=20,
    epochs=12.0,
    epsilon=math.inf,
    delta=1e-3,
    clip_norm=1.0,
    seed=0,
    nonce=b'',
  )
  found = private_text.trainer(
    'tiny',
    text_heads.Classifier(
      task.vocab_size, num_classes=2, pool='mean', pooler=False, **ENCODER
    ),
    lambda own: {**own, **pretrained},
    finetuned_text.hold_out(more, task.test, num_rows=12),
    plan=plan,
    tx=optax.adam(1.0),
    adapter=ADAPTER,
  )((0, 1, 2), (0.0, 0.1))
  assert list(found) == [0.0, 0.1]
  for scores in found.values():
    share, accuracy = scores.curve
    assert (share[0] > 0) & (share[-1] == 1)
    assert accuracy.shape == (len(share), 3)
    np.testing.assert_array_equal(accuracy[-1], scores.score)
  # Nothing moves at rate 0, from heads of the seeds' own; all learn at 0.1.
  still, moved = (found[rate].curve[1] for rate in found)
  assert (still == still[0]).all()
  assert found[0.1].score.min() > 0.9 > found[0.0].score.mean()
  assert (moved != moved[0]).any()
  # Held-out rows choose, and not test rows.
  assert found[0.1].held_out.max() < 0.2
  assert private_text.best_rate(found) == 0.0
