"""Published text weights: names, exact round trips, and loud refusals."""

import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from repjax.models import text_heads
from repjax.models import transformer
from repjax.types import InputError
from repjax.weights import text_config
from repjax.weights import text_weights

TINY = dict(
  vocab_size=11,
  hidden_dim=8,
  mlp_dim=12,
  num_heads=2,
  num_layers=2,
  num_positions=9,
)
TOKENS = np.zeros((1, 3), np.int32)


def sized(settings, **fields):
  return {**settings, **TINY, **fields}


MODELS = {
  'bert': text_heads.MaskedLM(**sized(transformer.BERT)),
  'roberta': text_heads.Classifier(**sized(transformer.ROBERTA), num_classes=3),
  'gpt2': transformer.DecoderLM(**sized(transformer.GPT2)),
  'bart': transformer.EncoderDecoder(**sized(transformer.BART)),
}


def draw(model):
  inputs = {}
  if isinstance(model, transformer.EncoderDecoder):
    inputs['source'] = TOKENS
  init = functools.partial(model.init, train=False, **inputs)
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: rng.normal(0.1, 0.5, x.shape).astype(x.dtype),
    jax.eval_shape(init, jax.random.key(0), TOKENS)['params'],
  )


@pytest.fixture(scope='module')
def trees():
  return {family: draw(model) for family, model in MODELS.items()}


def stored(path, params, family):
  text_weights.save(path, params, family=family)
  return safetensors.numpy.load_file(path)


@pytest.mark.parametrize('family', MODELS)
def test_a_file_gives_back_the_same_bits(family, trees, tmp_path):
  path = tmp_path / 'model.safetensors'
  arrays = stored(path, trees[family], family)
  shapes = jax.eval_shape(lambda: trees[family])
  for place in (path, tmp_path):
    found = text_weights.load(place, shapes, family=family)
    chex.assert_trees_all_equal(found, trees[family])
  # Files of the network without heads leave out the prefix of its names.
  prefix = text_weights.LAYOUTS[family].prefix
  bare = {name.removeprefix(prefix): array for name, array in arrays.items()}
  if family in ('gpt2', 'bart'):
    safetensors.numpy.save_file(bare, path)
    found = text_weights.load(path, shapes, family=family)
    chex.assert_trees_all_equal(found, trees[family])


def test_names_and_places_are_those_of_the_files(trees, tmp_path):
  """A few of each kind; the parity tests have all of them."""
  path = tmp_path / 'a.safetensors'
  bert = stored(path, trees['bert'], 'bert')
  own = trees['bert']['encoder']['block_1']
  query = own['attention']['query']['kernel'].reshape(8, 8)
  np.testing.assert_array_equal(
    bert['bert.encoder.layer.1.attention.self.query.weight'], query.T
  )
  np.testing.assert_array_equal(
    bert['bert.encoder.layer.1.attention.output.dense.weight'],
    own['attention']['out']['kernel'].reshape(8, 8).T,
  )
  np.testing.assert_array_equal(
    bert['bert.embeddings.word_embeddings.weight'],
    trees['bert']['token_embedding']['embedding'],
  )
  assert bert['cls.predictions.bias'].shape == (11,)
  roberta = stored(path, trees['roberta'], 'roberta')
  assert roberta['roberta.embeddings.position_embeddings.weight'].shape[0] == 11
  assert {'classifier.dense.weight', 'classifier.out_proj.bias'} <= {*roberta}
  gpt2 = stored(path, trees['gpt2'], 'gpt2')
  own = trees['gpt2']['decoder']['block_0']['attention']
  fused = np.concatenate(
    [own[n]['kernel'].reshape(8, 8) for n in ('query', 'key', 'value')], 1
  )
  np.testing.assert_array_equal(
    gpt2['transformer.h.0.attn.c_attn.weight'], fused
  )
  assert gpt2['transformer.h.0.mlp.c_fc.weight'].shape == (8, 12)
  bart = stored(path, trees['bart'], 'bart')
  assert 'model.decoder.layers.1.encoder_attn.q_proj.weight' in bart
  assert 'model.decoder.layers.1.self_attn_layer_norm.bias' in bart


def change(tmp_path, trees, family, edit, **settings):
  path = tmp_path / 'model.safetensors'
  arrays = stored(path, trees[family], family)
  edit(arrays)
  safetensors.numpy.save_file(arrays, path)
  return text_weights.load(path, trees[family], family=family, **settings)


def test_copies_and_buffers_of_old_files_are_understood(trees, tmp_path):
  def edit(arrays):
    arrays['bert.embeddings.position_ids'] = np.arange(9)[None]
    table = arrays['bert.embeddings.word_embeddings.weight']
    arrays['cls.predictions.decoder.weight'] = table.copy()
    arrays['cls.predictions.decoder.bias'] = arrays.pop('cls.predictions.bias')
    norm = 'bert.embeddings.LayerNorm.'
    arrays[f'{norm}gamma'] = arrays.pop(f'{norm}weight')
    arrays[f'{norm}beta'] = arrays.pop(f'{norm}bias')

  found = change(tmp_path, trees, 'bert', edit)
  chex.assert_trees_all_equal(found, trees['bert'])

  def untie(arrays):
    arrays['cls.predictions.decoder.weight'] = np.ones((11, 8), np.float32)

  with pytest.raises(InputError, match=r'decoder\.weight is not bert\.emb'):
    change(tmp_path, trees, 'bert', untie)

  def masks(arrays):
    arrays['transformer.h.0.attn.bias'] = np.ones((1, 1, 9, 9), np.float32)

  found = change(tmp_path, trees, 'gpt2', masks)
  chex.assert_trees_all_equal(found, trees['gpt2'])


@pytest.mark.parametrize('value', [0.0, 1.0])
def test_a_bias_of_barts_logits_is_zero_or_refused(value, trees, tmp_path):
  def edit(arrays):
    arrays['final_logits_bias'] = np.full((1, 11), value, np.float32)

  if value:
    with pytest.raises(InputError, match='final_logits_bias is not 0'):
      change(tmp_path, trees, 'bart', edit)
  else:
    found = change(tmp_path, trees, 'bart', edit)
    chex.assert_trees_all_equal(found, trees['bart'])


def test_an_untied_head_is_a_leaf(tmp_path):
  model = transformer.DecoderLM(**sized(transformer.GPT2), tied=False)
  params = draw(model)
  path = tmp_path / 'model.safetensors'
  assert stored(path, params, 'gpt2')['lm_head.weight'].shape == (11, 8)
  found = text_weights.load(path, params, family='gpt2')
  chex.assert_trees_all_equal(found, params)
  with pytest.raises(InputError, match='tied=False'):
    text_weights.load(path, draw(MODELS['gpt2']), family='gpt2')


def test_a_new_task_keeps_its_head(trees, tmp_path):
  """From a masked LM with a pooler to a classifier."""
  path = tmp_path / 'model.safetensors'
  arrays = stored(path, trees['bert'], 'bert')
  arrays['cls.seq_relationship.weight'] = np.ones((2, 8), np.float32)
  arrays['bert.pooler.dense.weight'] = np.eye(8, dtype=np.float32)
  safetensors.numpy.save_file(arrays, path)
  model = text_heads.Classifier(**sized(transformer.BERT), num_classes=3)
  fresh = draw(model)
  with pytest.raises(InputError, match=r'classifier\.bias.*cls\.pred.*replace'):
    text_weights.load(path, fresh, family='bert')
  found = text_weights.load(path, fresh, family='bert', head='replace')
  chex.assert_trees_all_equal(found['encoder'], trees['bert']['encoder'])
  chex.assert_trees_all_equal(found['head'], fresh['head'])
  np.testing.assert_array_equal(found['pooling']['kernel'], np.eye(8))
  np.testing.assert_array_equal(
    found['pooling']['bias'], fresh['pooling']['bias']
  )


LAYER = 'bert.encoder.layer.0.output.dense.weight'


@pytest.mark.parametrize(
  ('edit', 'message'),
  [
    (lambda a: a.pop(LAYER), rf"missing \['{LAYER}'\]; unexpected \[\]"),
    (
      lambda a: a.update({f'{LAYER}s': a[LAYER]}),
      rf"unexpected \['{LAYER}s'\]",
    ),
    (
      lambda a: a.update({LAYER: np.ones((8, 13), np.float32)}),
      r'output\.dense\.weight \(13, 8\) for .*mlp/out/kernel \(12, 8\)',
    ),
  ],
)
def test_files_that_do_not_fit_are_refused(edit, message, trees, tmp_path):
  with pytest.raises(InputError, match=message):
    change(tmp_path, trees, 'bert', edit, head='replace')


def shards(folder, params, dtype):
  """Several files with an index, as large models come; returns the index."""
  arrays = stored(folder / 'whole', params, 'bert')
  (folder / 'whole').unlink()
  names = sorted(arrays)
  places = {
    name: f'model-0000{1 + i % 3}-of-00003.safetensors'
    for i, name in enumerate(names)
  }
  for file in set(places.values()):
    safetensors.numpy.save_file(
      {k: arrays[k].astype(dtype) for k in names if places[k] == file},
      folder / file,
    )
  index = folder / 'model.safetensors.index.json'
  index.write_text(json.dumps({'metadata': {}, 'weight_map': places}))
  return index


@pytest.mark.parametrize('dtype', [np.float32, np.float16, jnp.bfloat16])
def test_large_models_come_in_several_files(dtype, trees, tmp_path):
  index = shards(tmp_path, trees['bert'], dtype)
  expected = jax.tree.map(
    lambda x: x.astype(dtype).astype(np.float32), trees['bert']
  )
  shapes = jax.eval_shape(lambda: trees['bert'])
  for place in (tmp_path, index, tmp_path / 'model.safetensors'):
    found = text_weights.load(place, shapes, family='bert')
    chex.assert_trees_all_equal(found, expected)


@pytest.mark.parametrize(
  ('edit', 'message'),
  [
    (
      lambda folder, index: (folder / index['weight_map'][LAYER]).unlink(),
      'cannot read weights from .*of-00003',
    ),
    (
      lambda folder, index: index['weight_map'].update(
        more='model-00001-of-00003.safetensors'
      ),
      r"lack \['more'\]",
    ),
    (
      lambda folder, index: index['weight_map'].update(more='../a.safetensors'),
      'no weight_map',
    ),
    (lambda folder, index: index.update(weight_map=None), 'no weight_map'),
    (
      lambda folder, index: index['weight_map'].pop(LAYER) and None,
      None,  # An array that the index forgets is an array.
    ),
  ],
)
def test_damaged_sets_of_files_are_refused(edit, message, trees, tmp_path):
  index = shards(tmp_path, trees['bert'], np.float32)
  content = json.loads(index.read_text())
  edit(tmp_path, content)
  index.write_text(json.dumps(content))
  if message is None:
    text_weights.load(tmp_path, trees['bert'], family='bert')
    return
  with pytest.raises(InputError, match=message):
    text_weights.load(tmp_path, trees['bert'], family='bert')


def test_what_cannot_be_read_is_named(trees, tmp_path):
  with pytest.raises(InputError, match='cannot read weights'):
    text_weights.load(tmp_path, trees['bert'], family='bert')
  with pytest.raises(InputError, match='family must be one of'):
    text_weights.save(tmp_path / 'a', trees['bert'], family='t5')
  with pytest.raises(InputError, match='cannot read'):
    text_config.read(tmp_path)


@pytest.mark.parametrize('family', ['bert', 'gpt2', 'bart'])
def test_a_config_without_fields_is_the_published_one(family, tmp_path):
  fields = {'model_type': family}
  (tmp_path / 'config.json').write_text(json.dumps(fields))
  found = text_config.read(tmp_path)
  # The default of transformers is BART-large.
  large = {'hidden_dim': 1024, 'num_layers': 12, 'position_offset': 2}
  expected = {
    'bert': {**transformer.BERT, 'vocab_size': 30_522},
    'gpt2': {**transformer.GPT2, 'vocab_size': 50_257},
    'bart': {**large, 'vocab_size': 50_265},
  }[family]
  assert found.family == family
  assert expected.items() <= {'position_offset': 0, **found.fields}.items()
  assert found.fields['dropout_rate'] == 0.1


@pytest.mark.parametrize(
  'fields',
  [
    {'model_type': 't5'},
    {'model_type': 'bert', 'position_embedding_type': 'relative_key'},
    {'model_type': 'gpt2', 'scale_attn_by_inverse_layer_idx': True},
    {'model_type': 'bart', 'decoder_ffn_dim': 8},
    {'model_type': 'bert', 'hidden_act': 'swish'},
  ],
)
def test_configs_of_other_models_are_refused(fields, tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps(fields))
  name = list(fields)[-1]
  with pytest.raises(InputError, match=f'{name} must be one of'):
    text_config.read(tmp_path)


@pytest.mark.parametrize('kind', ['RobertaForMaskedLM', 'RobertaModel'])
def test_the_head_of_masked_tokens_has_one_activation(kind, tmp_path):
  fields = dict(model_type='roberta', pad_token_id=1, hidden_act='relu')
  fields['architectures'] = [kind]
  (tmp_path / 'config.json').write_text(json.dumps(fields))
  if kind == 'RobertaModel':
    assert text_config.read(tmp_path).fields['activation'] == 'relu'
    return
  with pytest.raises(InputError, match='hidden_act'):
    text_config.read(tmp_path)
