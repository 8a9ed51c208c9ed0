"""How blocks are computed is a field of every recipe of texts."""

import importlib

import jax
import pytest

from configs import mam_adapter
from configs.parts import text_models
from repjax.models import text_heads
from repjax.models import transformer


def _step(config, paper):
  """The program of an update."""
  made = importlib.import_module(f'configs.{paper}').build(config)
  batch = made.train.batch(0)
  state = jax.eval_shape(made.method.init, jax.random.key(0), batch)
  return str(
    jax.make_jaxpr(made.method.update)(state, batch, jax.random.key(1))
  )


@pytest.mark.parametrize(
  'paper',
  [
    'mam_adapter',
    'dp_finetuning',
    'wilds_text',
    'gradient_vaccine',
    'performer',
    'rfa',
  ],
)
def test_blocks_are_computed_as_the_config_says(paper, tmp_path):
  config = importlib.import_module(f'configs.{paper}').get_config('smoke')
  if paper == 'dp_finetuning':
    path = tmp_path / 'reviews.csv'
    rows = ''.join(f'good,{i},1\nbad,{i},0\n' for i in range(40))
    path.write_text(f'text,number,stars\n{rows}')
    config.data.update(
      **dict(kind='sentences', name='csv:label=stars', dir=str(path)),
      **dict(train_split='train', eval_splits=('test',)),
      **dict(column='text', length=8),
    )
    config.model.update(hidden_dim=16, mlp_dim=16, num_heads=2)
  config.model.update(num_layers=2, remat=False, scan_layers=False)
  plain = _step(config, paper)
  config.model.update(remat=True, scan_layers=True)
  other = _step(config, paper)
  assert other.count('remat') > plain.count('remat')
  assert other.count(' scan[') > plain.count(' scan[')


def test_weights_do_not_say_how_blocks_are_computed(monkeypatch):
  stored = dict(transformer.ROBERTA, vocab_size=9, hidden_dim=8, num_layers=2)
  kept = type('Stored', (), {'fields': stored})
  monkeypatch.setattr(text_models, '_stored', lambda config: ('', kept))
  config = mam_adapter.get_config('smoke')
  config.weights = 'weights'
  config.model.update(remat=True, scan_layers=True)
  made = text_models.model(config, text_heads.Classifier, 0, num_classes=2)
  assert made.remat and made.scan_layers and made.hidden_dim == 8
  assert config.model.remat and config.model.hidden_dim == 8
