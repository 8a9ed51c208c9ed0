"""Files of adapters: round trips and refusals; parity has peft itself."""

import functools
import json

import chex
import jax
import numpy as np
import pytest
import safetensors.numpy

from repjax.layers import adapters
from repjax.models import text_heads
from repjax.models import transformer
from repjax.models import vit
from repjax.types import InputError
from repjax.weights import peft_files
from repjax.weights import text_weights
from repjax.weights import vit_weights

TINY = dict(
  vocab_size=11,
  hidden_dim=8,
  mlp_dim=12,
  num_heads=2,
  num_layers=2,
  num_positions=9,
)
TOKENS = np.zeros((1, 3), np.int32)
BERT = functools.partial(text_weights.stored_name, family='bert')
GPT2 = functools.partial(text_weights.stored_name, family='gpt2')


def draw(model, x=TOKENS):
  init = functools.partial(model.init, train=False)
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: rng.normal(0, 0.5, x.shape).astype(x.dtype),
    jax.eval_shape(init, jax.random.key(0), x),
  )


def classifier(rules):
  model = text_heads.Classifier(**{**transformer.BERT, **TINY}, num_classes=3)
  return adapters.adapt(model, rules, train=lambda path: path[0] == 'head')


LORA = {'.*/(query|out)': adapters.lora(2, alpha=6.0)}


@pytest.fixture(scope='module')
def bert():
  model = classifier(LORA)
  return model, draw(model)['params']


def test_lora_comes_back(bert, tmp_path):
  model, params = bert
  peft_files.save_lora(tmp_path, model, params, names=BERT)
  assert peft_files.lora_settings(tmp_path) == adapters.lora(2, alpha=6.0)
  shapes = jax.eval_shape(lambda: params)
  found = peft_files.load_lora(tmp_path, model, shapes, names=BERT)
  chex.assert_trees_all_equal(found, params)
  arrays = safetensors.numpy.load_file(tmp_path / 'adapter_model.safetensors')
  name = 'base_model.model.bert.encoder.layer.1.output.dense.lora_A.weight'
  own = params['encoder']['block_1']['mlp']['out']['lora']
  np.testing.assert_array_equal(arrays[name], own['down']['kernel'].T)
  config = json.loads((tmp_path / 'adapter_config.json').read_text())
  assert config['modules_to_save'] == ['classifier']


def test_the_patches_of_a_vit_are_a_convolution(tmp_path):
  base = vit.ViT(
    3, patch_size=2, hidden_dim=8, mlp_dim=12, num_heads=2, num_layers=1
  )
  model = adapters.adapt(base, {'embedding': adapters.lora(2)})
  params = draw(model, np.zeros((1, 4, 4, 3), np.float32))['params']
  names = vit_weights.stored_name
  peft_files.save_lora(tmp_path, model, params, names=names)
  found = peft_files.load_lora(tmp_path, model, params, names=names)
  chex.assert_trees_all_equal(found, params)
  arrays = safetensors.numpy.load_file(tmp_path / 'adapter_model.safetensors')
  stem = 'base_model.model.vit.embeddings.patch_embeddings.projection.lora_'
  assert arrays[f'{stem}A.weight'].shape == (2, 3, 2, 2)
  assert arrays[f'{stem}B.weight'].shape == (8, 2, 1, 1)


def test_gpt2_gets_a_block_matrix_and_gives_three(tmp_path):
  base = transformer.DecoderLM(**{**transformer.GPT2, **TINY})
  model = adapters.adapt(base, {'.*/(query|key|value)': adapters.lora(2)})
  variables = draw(model)
  peft_files.save_lora(tmp_path, model, variables['params'], names=GPT2)
  # As one file of rank 6, which is what it says for these layers.
  path = tmp_path / 'adapter_config.json'
  config = json.loads(path.read_text())
  assert set(config['rank_pattern'].values()) == {6}
  assert set(config['alpha_pattern'].values()) == {6.0}
  with pytest.raises(InputError, match='rank_pattern must be'):
    peft_files.lora_settings(tmp_path)
  config |= {'r': 6, 'lora_alpha': 6, 'rank_pattern': {}, 'alpha_pattern': {}}
  path.write_text(json.dumps(config))
  wide = adapters.adapt(
    base, {'.*/(query|key|value)': peft_files.lora_settings(tmp_path)}
  )
  params = peft_files.load_lora(
    tmp_path, wide, draw(wide)['params'], names=GPT2
  )
  merged = [
    adapters.merge(a, {**variables, 'params': p})
    for a, p in ((model, variables['params']), (wide, params))
  ]
  chex.assert_trees_all_close(*merged, atol=1e-5)
  half = adapters.adapt(base, {'.*/query': adapters.lora(2)})
  with pytest.raises(InputError, match=r"needs LoRA at \['key', 'value'\]"):
    peft_files.save_lora(tmp_path, half, draw(half)['params'], names=GPT2)


def test_prefixes_come_back(tmp_path):
  base = transformer.DecoderLM(**{**transformer.GPT2, **TINY})
  model = adapters.adapt(base, {'.*/attention': adapters.prefix(3)})
  params = draw(model)['params']
  peft_files.save_prefix(tmp_path, params, task_type='CAUSAL_LM')
  found = peft_files.load_prefix(tmp_path, params)
  chex.assert_trees_all_equal(found, params)
  longer = adapters.adapt(base, {'.*/attention': adapters.prefix(4)})
  with pytest.raises(InputError, match=r'key \(3, 2, 4\), not \(4, 2, 4\)'):
    peft_files.load_prefix(tmp_path, draw(longer)['params'])
  with pytest.raises(InputError, match="peft_type must be 'LORA'"):
    peft_files.lora_settings(tmp_path)


def test_files_that_do_not_fit_are_refused(bert, tmp_path):
  model, params = bert
  peft_files.save_lora(tmp_path, model, params, names=BERT)
  load = functools.partial(peft_files.load_lora, tmp_path, names=BERT)
  fewer = classifier({'.*/query': adapters.lora(2, alpha=6.0)})
  with pytest.raises(InputError, match=r'unexpected .*output\.dense\.lora_A'):
    load(fewer, draw(fewer)['params'])
  more = classifier({'.*/(query|key|out)': adapters.lora(2, alpha=6.0)})
  with pytest.raises(InputError, match=r'missing .*key/lora/down/kernel'):
    load(more, draw(more)['params'])
  wider = classifier({'.*/(query|out)': adapters.lora(3, alpha=9.0)})
  with pytest.raises(InputError, match=r'not \(2, 4, 3\)'):
    load(wider, draw(wider)['params'])
  other = classifier({'.*/(query|out)': adapters.lora(2)})
  with pytest.raises(InputError, match='holds lora with scale 3'):
    load(other, draw(other)['params'])
  prefixed = classifier({'.*/attention': adapters.prefix(2)})
  with pytest.raises(InputError, match='has a prefix'):
    peft_files.save_lora(
      tmp_path, prefixed, draw(prefixed)['params'], names=BERT
    )
  with pytest.raises(InputError, match='cannot read'):
    load_from = tmp_path / 'nowhere'
    peft_files.lora_settings(load_from)
