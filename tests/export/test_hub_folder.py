"""Folders of Hugging Face: what is written, our readers give back."""

import functools
import json

import jax
import numpy as np
import pytest
import safetensors.numpy
import small_networks

from repjax import types
from repjax.export import form
from repjax.export import networks
from repjax.export import published
from repjax.layers import adapters
from repjax.layers import attention
from repjax.layers import frozen
from repjax.layers import performer
from repjax.models import mlp
from repjax.models import text_heads
from repjax.models import transformer
from repjax.models import vit
from repjax.weights import beit_weights
from repjax.weights import clip_weights
from repjax.weights import peft_files
from repjax.weights import swin_weights
from repjax.weights import t5_weights
from repjax.weights import text_config
from repjax.weights import text_weights
from repjax.weights import vit_weights


def read(folder, model, args, kwargs):
  """(the model of a folder, its parameters), as our readers have them."""
  family = json.loads((folder / 'config.json').read_text())['model_type']
  if family in ('vit', 'ijepa'):
    fields = vit_weights.hf_config(folder)
    # Files know of no rectangles but that of the images.
    made, load = vit.ViT(**fields, grid=model.grid), vit_weights.load_vit
  elif family == 'beit':
    made, load = beit_weights.model(folder), beit_weights.load
  elif family == 'swin':
    made = type(model)(**swin_weights.hf_config(folder))
    load = swin_weights.load
  elif family == 'clip':
    made, load = clip_weights.model(folder), clip_weights.load
  elif family == 't5':
    made, load = t5_weights.model(folder), t5_weights.load
  else:
    stored = text_config.read(folder)
    fields = dict(stored.fields)
    if isinstance(model, text_heads.Classifier):
      fields['num_classes'] = model.num_classes
    made = type(model)(**fields)
    load = functools.partial(text_weights.load, family=stored.family)
  init = functools.partial(made.init, train=False)
  shapes = jax.eval_shape(init, jax.random.key(0), *args, **kwargs)
  return made, load(folder, shapes['params'])


def assert_comes_back(network, folder, args, kwargs):
  made, params = read(folder, network.module, args, kwargs)
  again = networks.Network(made, {'params': params}, ())
  expected = small_networks.outputs(network, *args, **kwargs)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
    small_networks.outputs(again, *args, **kwargs),
    expected,
  )


@pytest.mark.parametrize(
  'name',
  [
    *small_networks.IMAGES,
    *small_networks.ENCODERS,
    *small_networks.DECODERS,
    *small_networks.BOTH,
  ],
)
def test_a_network_comes_back(name, tmp_path):
  network = small_networks.named(name)
  published.write(tmp_path, network)
  assert_comes_back(network, tmp_path, *small_networks.inputs(name))


def test_masked_images_and_clip_come_back(tmp_path):
  image, text = small_networks.images(), small_networks.tokens()
  text[:, -1] = small_networks.VOCAB - 1
  hidden = np.arange(len(image) * 9).reshape(-1, 9) % 2
  for model, args in (
    (small_networks.MASKED, (image, hidden)),
    (small_networks.CLIP, (image, text)),
  ):
    network = small_networks.network(model, *args)
    folder = tmp_path / type(model).__name__
    folder.mkdir()
    published.write(folder, network)
    assert_comes_back(network, folder, args, {})


@pytest.mark.parametrize('name', ['bert', 'roberta', 'gpt2', 'bart'])
def test_lora_comes_back_on_its_base(name, tmp_path):
  network = small_networks.with_lora(name)
  written = published.write(tmp_path, network)
  assert written.base == 'base'
  config = json.loads((tmp_path / 'adapter_config.json').read_text())
  assert config['base_model_name_or_path'] == written.base
  args, kwargs = small_networks.inputs(name)
  _, base = read(tmp_path / 'base', network.base, args, kwargs)
  blank = jax.tree.map(np.zeros_like, network.variables)
  own = {**blank, types.FROZEN: {}}
  own = adapters.with_base(network.module, blank, base)
  loaded = peft_files.load_lora(
    tmp_path, network.module, own, names=written.form.names
  )
  jax.tree.map(np.testing.assert_array_equal, loaded, network.variables)


def test_a_folder_is_made_and_written_again(tmp_path):
  network = small_networks.with_lora('gpt2')
  for _ in range(2):
    published.write(tmp_path / 'new' / 'folder', network)
  assert (tmp_path / 'new' / 'folder' / 'base' / 'config.json').exists()
  # peft has one matrix for queries, keys and values.
  some = adapters.adapt(network.base, {'.*/(query|value)': adapters.lora(2)})
  tokens = small_networks.tokens()
  with pytest.raises(types.InputError, match='needs LoRA at'):
    published.write(tmp_path / 'other', small_networks.network(some, tokens))
  assert not (tmp_path / 'other').exists()


def test_a_part_that_was_trained_is_written_with_the_rest(tmp_path):
  whole = small_networks.named('vit of patches')
  model = frozen.train_only(whole.base, lambda path: path[0] == 'head')
  head = {'head': whole.params['head']}
  rest = {k: x for k, x in whole.params.items() if k != 'head'}
  network = networks.Network(
    model, {'params': head, types.FROZEN: rest}, whole.args
  )
  published.write_npz(tmp_path, network)
  loaded = vit_weights.load_vit(tmp_path / 'model.npz', whole.params)
  jax.tree.map(np.testing.assert_array_equal, loaded, whole.params)


def test_published_weights_are_a_base_by_their_name(tmp_path):
  network = small_networks.with_lora('bert')
  written = published.write(tmp_path, network, base='roberta-base')
  assert written.base == 'roberta-base'
  assert not (tmp_path / 'base').exists()


def test_classes_pixels_and_ids_are_told(tmp_path):
  names = ['ant', 'bee', 'cat', 'dog', 'elk']
  published.write(
    tmp_path,
    small_networks.named('vit'),
    class_names=names,
    scaling=published.Scaling((0.5,), (0.25,)),
    token_ids={'pad_token_id': 9},
  )
  config = json.loads((tmp_path / 'config.json').read_text())
  assert list(config['id2label'].values()) == names
  assert config['label2id']['cat'] == 2
  assert 'pad_token_id' not in config  # Images have none.
  pixels = json.loads((tmp_path / 'preprocessor_config.json').read_text())
  assert pixels['image_mean'] == [0.5] * 3 and pixels['image_std'] == [0.25] * 3
  assert pixels['size'] == {'height': 12, 'width': 12}
  (tmp_path / 'text').mkdir()
  published.write(
    tmp_path / 'text',
    small_networks.named('gpt2'),
    token_ids={'eos_token_id': 2},
  )
  config = json.loads((tmp_path / 'text' / 'config.json').read_text())
  assert config['eos_token_id'] == 2


def test_the_authors_names_come_back(tmp_path):
  network = small_networks.named('vit of patches')
  published.write_npz(tmp_path, network)
  loaded = vit_weights.load_vit(tmp_path / 'model.npz', network.params)
  jax.tree.map(np.testing.assert_array_equal, loaded, network.params)
  with pytest.raises(types.InputError, match=r'--format=npz.*Swin.*--merge'):
    published.write_npz(tmp_path, small_networks.named('swin'))


@pytest.mark.parametrize(
  ('changed', 'says'),
  [
    (dict(attention_fn=performer.Favor()), 'attention'),
    (dict(position='sincos'), 'position'),
    (dict(representation_dim=8), 'representation_dim'),
  ],
)
def test_what_the_authors_compute_otherwise_is_refused(tmp_path, changed, says):
  network = small_networks.named('vit of patches')
  network = network._replace(module=network.module.clone(**changed))
  with pytest.raises(types.InputError, match=says):
    published.write_npz(tmp_path, network)
  assert not list(tmp_path.iterdir())


def test_roberta_counts_positions_behind_its_own_padding(tmp_path):
  network = small_networks.named('roberta')
  with pytest.raises(types.InputError, match='padding, whose id is 1'):
    published.write(tmp_path, network, token_ids={'pad_token_id': 0})
  published.write(tmp_path, network, token_ids={'pad_token_id': 1})


def test_timms_names_come_back(tmp_path):
  network = small_networks.named('swin')
  published.write_timm(tmp_path, network)
  stored = safetensors.numpy.load_file(tmp_path / 'model.safetensors')
  assert 'head.fc.weight' in stored
  assert 'layers.1.downsample.norm.weight' in stored
  loaded = swin_weights.load(tmp_path, network.params)
  jax.tree.map(np.testing.assert_array_equal, loaded, network.params)
  with pytest.raises(types.InputError, match=r'--format=timm.*Swin.*ViT'):
    published.write_timm(tmp_path, small_networks.named('vit'))


@pytest.mark.parametrize(
  ('fields', 'sides', 'reason'),
  [
    # Maps of 6 and 3 are whole windows of 3; of 5 they are none.
    (dict(window=3), (12, 12), ''),
    (dict(window=5), (12, 12), 'stage 0 is 6 x 6'),
    (dict(window=2), (12, 12), 'stage 1 is 3 x 3'),
    (dict(window=3), (13, 12), r'stage 0 is 6\.5 x 6'),
    # A map that is one window across alone is shifted by timm, and not by us.
    (dict(window=3), (12, 24), 'stage 1 is 3 x 6'),
    (dict(window=3, gelu='tanh'), (12, 12), "gelu='exact'"),
    (dict(window=3, layer_norm_epsilon=1e-6), (12, 12), 'epsilon=1e-05'),
  ],
)
def test_what_timm_would_see_in_another_way(fields, sides, reason, tmp_path):
  network = small_networks.named('swin')
  shape = jax.ShapeDtypeStruct((1, *sides, 3), np.float32)
  network = network._replace(
    module=network.module.clone(**fields), args=(shape,)
  )
  if not reason:
    published.write_timm(tmp_path, network)
    return
  with pytest.raises(types.InputError, match=reason) as error:
    published.write_timm(tmp_path, network)
  assert '\n' not in str(error.value)
  assert not list(tmp_path.iterdir())


def bare(model, *args):
  shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in args)
  return networks.Network(model, {'params': {}}, shapes)


@pytest.mark.parametrize(
  ('model', 'reason'),
  [
    (mlp.Mlp(3, features=(4,)), 'The Mlp of this run.*ViT, BEiT, Swin'),
    (
      small_networks.IMAGES['vit'].clone(attention_fn=performer.Favor()),
      'attention is exact, and here Favor',
    ),
    (
      small_networks.IMAGES['vit'].clone(representation_dim=4),
      'representation_dim=None, and this one 4',
    ),
    (small_networks.ENCODERS['bert'].clone(pool='mean'), "pool='first'"),
    (small_networks.ENCODERS['bert'].clone(norm='pre'), "norm='post'"),
    (small_networks.DECODERS['gpt2'].clone(position='rotary'), "'rotary'"),
    (small_networks.DECODERS['gpt2'].clone(num_positions=None), 'of a number'),
    (small_networks.BOTH['bart'].clone(position_offset=0), 'position_offset=2'),
    (small_networks.BOTH['t5'].clone(scaled=False), 'tied'),
    (small_networks.BOTH['t5'].clone(num_positions=9), 'num_positions=0'),
    # Its maps are 6 x 6 and 3 x 3.
    (small_networks.IMAGES['swin'].clone(window=4), 'stage 1 are 3 x 3'),
    (
      text_heads.MaskedLM(
        **dict(vocab_size=9, hidden_dim=8, mlp_dim=8, num_heads=2),
        **dict(num_layers=1, num_positions=9, position_offset=2),
        **dict(norm='post', embedding_norm=True, activation='relu'),
      ),
      "activation='gelu_exact'",
    ),
    (small_networks.CLIP.clone(initial_bias=-10.0), 'initial_bias=None'),
    (
      small_networks.CLIP.clone(image_tower=small_networks.IMAGES['vit']),
      'here ViT and TextTower',
    ),
  ],
)
def test_what_has_no_published_form_is_refused(model, reason, tmp_path):
  with pytest.raises(types.InputError, match=reason) as error:
    published.write(tmp_path, bare(model, small_networks.images()))
  assert '--format=jax' in str(error.value)
  assert '\n' not in str(error.value)
  assert not list(tmp_path.iterdir())


def test_adapters_without_files_are_refused(tmp_path):
  model = adapters.adapt(
    small_networks.DECODERS['gpt2'], {'.*/mlp': adapters.adapter(2)}
  )
  assert isinstance(model.plan.model, transformer.DecoderLM)
  with pytest.raises(types.InputError, match=r'DecoderLM with .*LoRA alone'):
    published.write(tmp_path, bare(model, small_networks.tokens()))
  assert not list(tmp_path.iterdir())


def test_lora_of_images_is_merged_or_refused(tmp_path):
  network = small_networks.with_lora('vit')
  with pytest.raises(types.InputError, match='--merge'):
    published.write(tmp_path, network)
  assert not list(tmp_path.iterdir())
  published.write(tmp_path, network.merged)
  assert_comes_back(network, tmp_path, *small_networks.inputs('vit'))


def test_sizes_are_one_number_where_they_are_equal():
  assert form.size((4, 4)) == 4 and form.size((4, 3)) == [4, 3]


_SAID = 'hidden_dropout_prob', 'attention_probs_dropout_prob', 'layer_norm_eps'


@pytest.mark.parametrize(
  ('name', 'said'),
  [
    ('vit', _SAID),
    ('bert', _SAID),
    ('gpt2', ('resid_pdrop', 'attn_pdrop', 'layer_norm_epsilon')),
  ],
)
def test_rates_and_epsilons_are_told(name, said):
  known = {
    **small_networks.IMAGES,
    **small_networks.ENCODERS,
    **small_networks.DECODERS,
  }
  model = known[name].clone(
    dropout_rate=0.3, attention_dropout_rate=0.2, layer_norm_epsilon=1e-3
  )
  args, _ = small_networks.inputs(name)
  config = published.form_of(bare(model, *args)).config
  assert [config[x] for x in said] == [0.3, 0.2, 1e-3]


def test_a_swin_of_another_epsilon_is_refused_both_ways(tmp_path):
  network = small_networks.named('swin')
  other = network.module.clone(layer_norm_epsilon=1e-3)
  with pytest.raises(types.InputError, match='layer_norm_epsilon=1e-05'):
    published.write(tmp_path, network._replace(module=other))
  said = {'model_type': 'swin', 'layer_norm_eps': 1e-3}
  (tmp_path / 'config.json').write_text(json.dumps(said))
  with pytest.raises(types.InputError, match='layer_norm_eps must be one of'):
    swin_weights.hf_config(tmp_path)


def test_attention_that_config_json_does_not_tell_is_refused(tmp_path):
  beit, bert = map(small_networks.named, ('beit of a token', 'bert'))
  encoder = beit.module.encoder.clone(attention_fn=performer.Favor())
  causal = attention.Softmax(causal=True)
  for network in (
    beit._replace(module=beit.module.clone(encoder=encoder)),
    bert._replace(module=bert.module.clone(attention_fn=causal)),
  ):
    with pytest.raises(types.InputError, match='its attention'):
      published.write(tmp_path / 'hub', network)
  assert not (tmp_path / 'hub').exists()


def test_a_home_is_a_home(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.chdir(tmp_path)
  published.write('~/hub', small_networks.named('vit'))
  published.write('~/lora', small_networks.with_lora('bert'))
  published.write_npz('~/npz', small_networks.named('vit'))
  assert {x.name for x in tmp_path.iterdir()} == {'hub', 'lora', 'npz'}
