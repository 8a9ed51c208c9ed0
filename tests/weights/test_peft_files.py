"""Files of adapters: round trips and refusals; parity has peft itself."""

import functools
import json

import chex
from flax import traverse_util
import jax
import numpy as np
import pytest
import safetensors.numpy

from repjax import types
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
  found = peft_files.load_lora(tmp_path, model, {'params': shapes}, names=BERT)
  chex.assert_trees_all_equal(found, {'params': params})
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
  found = peft_files.load_lora(tmp_path, model, {'params': params}, names=names)
  chex.assert_trees_all_equal(found, {'params': params})
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
  # And back, bit for bit.
  assert peft_files.lora_settings(tmp_path) == adapters.lora(2)
  found = peft_files.load_lora(tmp_path, model, variables, names=GPT2)
  chex.assert_trees_all_equal(found, variables)
  # The same file as peft may have trained it: one matrix of rank 6.
  config |= {'r': 6, 'lora_alpha': 6, 'rank_pattern': {}, 'alpha_pattern': {}}
  path.write_text(json.dumps(config))
  wide = adapters.adapt(
    base, {'.*/(query|key|value)': peft_files.lora_settings(tmp_path)}
  )
  loaded = peft_files.load_lora(
    tmp_path,
    wide,
    {**draw(wide), types.FROZEN: variables[types.FROZEN]},
    names=GPT2,
  )
  merged = [
    adapters.merge(a, x) for a, x in ((model, variables), (wide, loaded))
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
    load(fewer, draw(fewer))
  more = classifier({'.*/(query|key|out)': adapters.lora(2, alpha=6.0)})
  with pytest.raises(InputError, match=r'missing .*key/lora/down/kernel'):
    load(more, draw(more))
  wider = classifier({'.*/(query|out)': adapters.lora(3, alpha=9.0)})
  with pytest.raises(InputError, match=r'not \(2, 4, 3\)'):
    load(wider, draw(wider))
  other = classifier({'.*/(query|out)': adapters.lora(2)})
  with pytest.raises(InputError, match='holds lora with scale 3'):
    load(other, draw(other))
  prefixed = classifier({'.*/attention': adapters.prefix(2)})
  with pytest.raises(InputError, match='has a prefix'):
    peft_files.save_lora(
      tmp_path, prefixed, draw(prefixed)['params'], names=BERT
    )
  with pytest.raises(InputError, match='cannot read'):
    load_from = tmp_path / 'nowhere'
    peft_files.lora_settings(load_from)


def edit(folder, **fields):
  """Changes an adapter_config.json."""
  path = folder / 'adapter_config.json'
  path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_layers_have_ranks_and_scales_of_their_own(tmp_path):
  """By the patterns of the file, of which the first that fits counts."""
  small, large = adapters.lora(2, alpha=6.0), adapters.lora(3, alpha=1.5)
  model = classifier({'.*_0/.*/query': small, '.*_1/.*/(query|out)': large})
  variables = draw(model)
  params = variables['params']
  leaves = traverse_util.flatten_dict(params, sep='/')
  arrays = {}
  for name, leaf in leaves.items():
    if '/lora/' not in name:
      arrays[BERT(name)] = leaf.T if leaf.ndim == 2 else leaf
      continue
    layer, _, part = name.rpartition('/kernel')[0].rpartition('/lora/')
    arrays[
      f'{BERT(layer + "/")}lora_{"A" if part == "down" else "B"}.weight'
    ] = np.ascontiguousarray(
      leaf.reshape(-1, leaf.shape[-1]).T
      if part == 'down'
      else leaf.reshape(leaf.shape[0], -1).T
    )
  safetensors.numpy.save_file(
    {
      f'base_model.model.{k}': np.ascontiguousarray(x)
      for k, x in arrays.items()
    },
    tmp_path / 'adapter_model.safetensors',
  )
  (tmp_path / 'adapter_config.json').write_text('{"peft_type": "LORA"}')
  edit(
    tmp_path,
    r=2,
    lora_alpha=6,
    rank_pattern={'layer.1.*': 3, 'query': 2},
    alpha_pattern={'layer.1.*.(query|dense)': 1.5, 'dense': 9},
  )
  with pytest.raises(InputError, match=r'2 ranks or scales.*lora_rules'):
    peft_files.lora_settings(tmp_path)
  base = model.plan.model
  shapes = jax.eval_shape(
    functools.partial(base.init, train=False), jax.random.key(0), TOKENS
  )
  rules = peft_files.lora_rules(tmp_path, shapes['params'], names=BERT)
  assert set(rules.values()) == {small, large}
  again = adapters.adapt(base, rules, train=lambda path: path[0] == 'head')
  found = peft_files.load_lora(tmp_path, again, draw(again), names=BERT)
  chex.assert_trees_all_equal(found['params'], params)
  edit(tmp_path, rank_pattern={})
  with pytest.raises(InputError, match=r'has rank 3, and its .* says 2'):
    peft_files.lora_settings(tmp_path)
  edit(tmp_path, rank_pattern={'*': 3})
  with pytest.raises(InputError, match='no regular expression'):
    peft_files.lora_settings(tmp_path)


@pytest.mark.parametrize('start', ['pissa', 'olora', 'OLoRA'])
def test_what_an_adapter_began_as_leaves_the_base(start, bert, tmp_path):
  model, _ = bert
  variables = draw(model)
  peft_files.save_lora(tmp_path, model, variables['params'], names=BERT)
  edit(tmp_path, init_lora_weights=start)
  loaded = peft_files.load_lora(tmp_path, model, variables, names=BERT)
  chex.assert_trees_all_equal(loaded['params'], variables['params'])
  old, new = variables[types.FROZEN], loaded[types.FROZEN]
  changed = 0
  for path, leaf in traverse_util.flatten_dict(old).items():
    found = dict(traverse_util.flatten_dict(new))[path]
    if path[-1] != 'kernel' or path[-2] not in ('query', 'out'):
      np.testing.assert_array_equal(found, leaf)
      continue
    changed += 1
    axis = 2 if path[-2:] == ('out', 'kernel') and leaf.ndim == 3 else 1
    weight = leaf.reshape(np.prod(leaf.shape[:axis]), -1).T  # [out, in].
    if start == 'pissa':
      left, values, right = np.linalg.svd(weight, full_matrices=False)
      product = left[:, :2] @ np.diag(values[:2]) @ right[:2]
    else:  # Scaled by alpha / r = 3.
      left, right = np.linalg.qr(weight)
      product = 3 * left[:, :2] @ right[:2]
    np.testing.assert_allclose(
      found, (weight - product).T.reshape(leaf.shape), atol=1e-5
    )
    assert np.abs(product).max() > 0.1
  assert changed == 2 * 3


@pytest.mark.parametrize(
  'fields',
  [
    dict(init_lora_weights='pissa_niter_4'),
    dict(init_lora_weights='corda'),
    dict(init_lora_weights='loftq'),
    dict(init_lora_weights='lora_ga'),
    dict(init_lora_weights='of_2030'),
    dict(alora_invocation_tokens=[1, 2]),
    dict(use_dora=True),
    dict(bias='all'),
    dict(lora_bias=True),
    dict(trainable_token_indices=[0]),
    dict(layer_replication=[[0, 2]]),
    dict(target_parameters=['weight']),
    dict(use_qalora=True),
    dict(kasa_config={'a': 1}),
    dict(of_2030='on'),
    dict(r='2'),
    dict(lora_alpha=[1]),
    dict(rank_pattern=[2]),
    dict(alpha_pattern={'a': 'b'}),
  ],
  ids=lambda fields: '-'.join(map(str, [*fields, *fields.values()])),
)
def test_what_is_not_known_is_refused_by_name(fields, bert, tmp_path):
  model, params = bert
  peft_files.save_lora(tmp_path, model, params, names=BERT)
  edit(
    tmp_path, of_2030=None, loftq_config={}, use_bdlora=None, lora_dropout=None
  )
  assert peft_files.lora_settings(tmp_path) == adapters.lora(2, alpha=6.0)
  edit(tmp_path, **fields)
  for read in (
    peft_files.lora_settings,
    lambda folder: peft_files.load_lora(
      folder, model, {'params': params}, names=BERT
    ),
  ):
    with pytest.raises(InputError, match=f'{next(iter(fields))}=') as error:
      read(tmp_path)
    assert '\n' not in str(error.value)


def test_starts_of_layers_that_peft_does_not_have_are_refused(tmp_path):
  base = transformer.DecoderLM(**{**transformer.GPT2, **TINY})
  model = adapters.adapt(base, {'.*/hidden': adapters.lora(2)})
  variables = draw(model)
  peft_files.save_lora(tmp_path, model, variables['params'], names=GPT2)
  edit(tmp_path, init_lora_weights='olora')
  with pytest.raises(InputError, match=r"'olora' is not known of .*c_fc"):
    peft_files.load_lora(tmp_path, model, variables, names=GPT2)


def test_prefixes_lie_in_the_order_of_more_than_ten_layers(tmp_path):
  def rows(i):
    return {x: np.full((1, 1, 2), i, np.float32) for x in ('key', 'value')}

  blocks = {f'block_{i}': {'attention': {'prefix': rows(i)}} for i in range(12)}
  peft_files.save_prefix(tmp_path, {'decoder': blocks}, task_type='CAUSAL_LM')
  stored = safetensors.numpy.load_file(tmp_path / 'adapter_model.safetensors')
  found = stored['prompt_embeddings'].reshape(12, 4)
  expected = np.repeat(np.arange(12), 4).reshape(12, 4)
  np.testing.assert_array_equal(found, expected)


def test_prefixes_that_peft_hands_out_otherwise_are_refused(tmp_path):
  base = transformer.DecoderLM(**{**transformer.GPT2, **TINY})
  model = adapters.adapt(base, {'.*/attention': adapters.prefix(3)})
  params = draw(model)['params']
  peft_files.save_prefix(tmp_path, params, task_type='SEQ_2_SEQ_LM')
  chex.assert_trees_all_equal(peft_files.load_prefix(tmp_path, params), params)
  for fields in (
    dict(num_transformer_submodules=2),
    dict(num_transformer_submodules=None),  # peft takes 2 for this task.
    dict(num_transformer_submodules=1, num_attention_heads=None),
  ):
    edit(tmp_path, **fields)
    with pytest.raises(InputError, match='of one stack'):
      peft_files.load_prefix(tmp_path, params)
  edit(tmp_path, num_attention_heads=2)
  place = tmp_path / 'adapter_model.safetensors'
  head = {'base_model.classifier.weight': np.zeros((3, 8), np.float32)}
  safetensors.numpy.save_file(safetensors.numpy.load_file(place) | head, place)
  with pytest.raises(InputError, match=r"classifier\.weight'\] beside"):
    peft_files.load_prefix(tmp_path, params)
