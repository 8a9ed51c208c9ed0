"""Published weights: every layout, exact round trips, and loud refusals."""

import functools
import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from repjax.layers.positions import grid_positions
from repjax.models import vit
from repjax.types import InputError
from repjax.weights import vit_weights

WIDTH, MLP, HEADS, LAYERS, PATCH, SIZE, CLASSES = 12, 20, 3, 2, 4, 12, 5
DEPTH = WIDTH // HEADS
BLOCK = 'Transformer/encoderblock_{i}/'
SAVE = {
  'a.npz': vit_weights.save_npz,
  'model.safetensors': vit_weights.save_safetensors,
}
POSITIONS = 'Transformer/posembed_input/pos_embedding'


def new_folder(test):
  folder = tempfile.TemporaryDirectory()
  test.addCleanup(folder.cleanup)
  return pathlib.Path(folder.name)


def model(**fields):
  settings = dict(
    num_classes=CLASSES,
    patch_size=PATCH,
    hidden_dim=WIDTH,
    mlp_dim=MLP,
    num_heads=HEADS,
    num_layers=LAYERS,
  )
  return vit.ViT(**(settings | fields))


def shapes(net, size=(SIZE, SIZE)):
  image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
  init = functools.partial(net.init, train=False)
  return jax.eval_shape(init, jax.random.key(0), image)['params']


def draw(net, *, seed=0, size=(SIZE, SIZE), dtype=np.float32):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: rng.normal(0.1, 0.5, leaf.shape).astype(dtype),
    shapes(net, size),
  )


def published():
  """Random leaves under the names and shapes of the authors' files."""
  rng = np.random.default_rng(0)
  leaves = {
    'cls': (1, 1, WIDTH),
    'embedding/kernel': (PATCH, PATCH, 3, WIDTH),
    'embedding/bias': (WIDTH,),
    POSITIONS: (1, (SIZE // PATCH) ** 2 + 1, WIDTH),
    'Transformer/encoder_norm/scale': (WIDTH,),
    'Transformer/encoder_norm/bias': (WIDTH,),
    'head/kernel': (WIDTH, CLASSES),
    'head/bias': (CLASSES,),
  }
  for i in range(LAYERS):
    block = BLOCK.format(i=i)
    attention = f'{block}MultiHeadDotProductAttention_1/'
    for norm in ('LayerNorm_0', 'LayerNorm_2'):
      leaves |= {f'{block}{norm}/{n}': (WIDTH,) for n in ('scale', 'bias')}
    for name in ('query', 'key', 'value'):
      leaves[f'{attention}{name}/kernel'] = (WIDTH, HEADS, DEPTH)
      leaves[f'{attention}{name}/bias'] = (HEADS, DEPTH)
    leaves |= {
      f'{attention}out/kernel': (HEADS, DEPTH, WIDTH),
      f'{attention}out/bias': (WIDTH,),
      f'{block}MlpBlock_3/Dense_0/kernel': (WIDTH, MLP),
      f'{block}MlpBlock_3/Dense_0/bias': (MLP,),
      f'{block}MlpBlock_3/Dense_1/kernel': (MLP, WIDTH),
      f'{block}MlpBlock_3/Dense_1/bias': (WIDTH,),
    }
  return {
    name: rng.normal(0.1, 0.5, shape).astype(np.float32)
    for name, shape in leaves.items()
  }


def forward(leaves, image):
  """The published network in NumPy float64, from the names in the file."""
  leaves = {name: leaf.astype(np.float64) for name, leaf in leaves.items()}

  def norm(x, name):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
    return x * leaves[f'{name}/scale'] + leaves[f'{name}/bias']

  def dense(x, name):
    kernel, bias = leaves[f'{name}/kernel'], leaves[f'{name}/bias']
    return np.tensordot(x, kernel, 1) + bias

  def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)

  def gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

  tokens = [np.broadcast_to(leaves['cls'][0], (len(image), 1, WIDTH))]
  kernel = leaves['embedding/kernel']
  for y in range(0, image.shape[1], PATCH):
    for x in range(0, image.shape[2], PATCH):
      patch = image[:, y : y + PATCH, x : x + PATCH]
      token = np.tensordot(patch, kernel, 3) + leaves['embedding/bias']
      tokens.append(token[:, None])
  x = np.concatenate(tokens, axis=1) + leaves[POSITIONS]
  for i in range(LAYERS):
    block = BLOCK.format(i=i)
    attention = f'{block}MultiHeadDotProductAttention_1'
    y = norm(x, f'{block}LayerNorm_0')
    query, key, value = (
      dense(y, f'{attention}/{name}') for name in ('query', 'key', 'value')
    )
    mixed = np.zeros_like(query)
    for h in range(HEADS):
      scores = query[:, :, h] @ key[:, :, h].swapaxes(1, 2) / np.sqrt(DEPTH)
      mixed[:, :, h] = softmax(scores) @ value[:, :, h]
    out = np.tensordot(mixed, leaves[f'{attention}/out/kernel'], 2)
    x = x + out + leaves[f'{attention}/out/bias']
    y = norm(x, f'{block}LayerNorm_2')
    hidden = gelu(dense(y, f'{block}MlpBlock_3/Dense_0'))
    x = x + dense(hidden, f'{block}MlpBlock_3/Dense_1')
  return dense(norm(x, 'Transformer/encoder_norm')[:, 0], 'head')


def linen(leaves):
  """The same leaves with the suffixes of today's linen."""
  for old, new in (
    ('MultiHeadDotProductAttention_1', 'MultiHeadDotProductAttention_0'),
    ('LayerNorm_2', 'LayerNorm_1'),
    ('MlpBlock_3', 'MlpBlock_0'),
  ):
    leaves = {name.replace(old, new): leaf for name, leaf in leaves.items()}
  return leaves


def big_vision(leaves):
  """As big_vision has them: the class token takes its own position."""
  leaves = linen(leaves)
  embedding = leaves.pop(POSITIONS)
  leaves['cls'] = leaves['cls'] + embedding[:, :1]
  leaves['pos_embedding'] = embedding[:, 1:]
  return {f'params/{name}': leaf for name, leaf in leaves.items()}


def stacked(leaves):
  """All layers of a kind in one leaf, as `nn.scan` makes them."""
  stacks, rest = {}, {}
  for name, leaf in big_vision(leaves).items():
    if 'encoderblock_' in name:
      head, tail = name.split('encoderblock_')
      stacks.setdefault(f'{head}encoderblock{tail[1:]}', []).append(leaf)
    else:
      rest[name] = leaf
  return rest | {name: np.stack(leaf) for name, leaf in stacks.items()}


def optimizer(leaves):
  """A checkpoint of flax's old optimizer, with its state."""
  target = {f'opt/target/{name}': leaf for name, leaf in leaves.items()}
  state = {f'opt/state/{name}/mu': leaf for name, leaf in leaves.items()}
  return target | state | {'opt/state/step': np.array(7)}


LAYOUTS = {
  'authors': lambda leaves: leaves,
  'linen': linen,
  'big_vision': big_vision,
  'stacked': stacked,
  'optimizer': optimizer,
}


class WeightsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = new_folder(self)

  def write(self, leaves, name='weights.npz'):
    path = self.folder / name
    np.savez(path, **leaves)
    return path

  def assert_same(self, found, expected):
    self.assertEqual(jax.tree.structure(found), jax.tree.structure(expected))
    for one, other in zip(
      jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
      self.assertEqual(one.dtype, other.dtype)
      np.testing.assert_array_equal(one, other)

  def test_every_npz_layout_gives_the_logits_of_the_network_by_hand(self):
    leaves = published()
    image = np.random.default_rng(1).normal(size=(2, SIZE, SIZE, 3))
    expected = forward(leaves, image)
    apply = jax.jit(functools.partial(model().apply, train=False))
    for layout, convert in LAYOUTS.items():
      with self.subTest(layout):
        path = self.write(convert(dict(leaves)))
        params = vit_weights.load_vit(path, shapes(model()))
        found = apply({'params': params}, image.astype(np.float32))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)

  @parameterized.product(
    name=tuple(SAVE),
    dtype=(jnp.float32, jnp.bfloat16, jnp.float16),
  )
  def test_what_is_written_comes_back_bit_for_bit(self, name, dtype):
    params = draw(model(), dtype=dtype)
    SAVE[name](self.folder / name, params)
    found = vit_weights.load_vit(self.folder / name, params)
    self.assert_same(found, params)
    self.assertEqual([path.name for path in self.folder.iterdir()], [name])

  def test_names_in_the_npz_are_the_published_ones(self):
    vit_weights.save_npz(self.folder / 'a.npz', draw(model()))
    with np.load(self.folder / 'a.npz') as file:
      found = {name: array.shape for name, array in file.items()}
    expected = {name: leaf.shape for name, leaf in published().items()}
    self.assertEqual(found, expected)

  def test_a_model_of_the_authors_pretraining_keeps_its_layer(self):
    net = model(representation_dim=7)
    params = draw(net)
    vit_weights.save_npz(self.folder / 'a.npz', params)
    self.assert_same(
      vit_weights.load_vit(self.folder / 'a.npz', params), params
    )

  @parameterized.parameters(np.int8, np.float32)
  def test_arrays_of_no_finite_numbers_are_refused(self, dtype):
    leaves = published()
    bad = np.zeros_like(leaves['head/bias'], dtype)
    if dtype == np.float32:
      bad[0] = np.nan
    path = self.write({**leaves, 'head/bias': bad})
    match = 'head/bias is int8' if dtype == np.int8 else 'head/bias has NaN'
    with self.assertRaisesRegex(InputError, match):
      vit_weights.load_vit(path, shapes(model()))

  def test_values_take_the_dtype_of_the_model(self):
    leaves = published()
    half = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16),
      shapes(model()),
    )
    found = vit_weights.load_vit(self.write(leaves), half)
    np.testing.assert_array_equal(
      found['head']['bias'], leaves['head/bias'].astype(jnp.bfloat16)
    )

  @parameterized.product(
    resize=('zoom', 'bicubic'), grid=((6, 6), (2, 7)), name=tuple(SAVE)
  )
  def test_another_image_size_gets_the_resized_grid(self, resize, grid, name):
    params = draw(model())
    path = self.folder / name
    SAVE[name](path, params)
    size = (grid[0] * PATCH, grid[1] * PATCH)
    found = vit_weights.load_vit(
      path, shapes(model(grid=grid), size), resize=resize, new_grid=grid
    )
    expected = grid_positions.resize_grid(
      params['positions']['embedding'],
      (3, 3),
      grid,
      num_prefix_tokens=1,
      method=resize,
    )
    np.testing.assert_array_equal(found['positions']['embedding'], expected)
    self.assert_same(found['block_1'], params['block_1'])

  def test_grids_are_zoomed_as_the_authors_do_unless_told(self):
    params, path = draw(model()), self.folder / 'a.npz'
    vit_weights.save_npz(path, params)
    found = vit_weights.load_vit(path, shapes(model(), (6 * PATCH, 6 * PATCH)))
    expected = grid_positions.resize_grid(
      params['positions']['embedding'],
      *((3, 3), (6, 6)),
      num_prefix_tokens=1,
      method='zoom',
    )
    np.testing.assert_array_equal(found['positions']['embedding'], expected)

  def test_a_grid_of_the_same_length_is_resized_if_its_sides_differ(self):
    net = model(pool='average', grid=(4, 1))
    params = draw(net, size=(4 * PATCH, PATCH))
    vit_weights.save_npz(self.folder / 'a.npz', params)
    found = vit_weights.load_vit(
      self.folder / 'a.npz', params, old_grid=(4, 1), new_grid=(1, 4)
    )
    self.assertFalse(
      np.array_equal(
        found['positions']['embedding'], params['positions']['embedding']
      )
    )

  def test_a_grid_that_is_no_square_must_be_given(self):
    vit_weights.save_npz(self.folder / 'a.npz', draw(model()))
    with self.assertRaisesRegex(InputError, 'new_grid='):
      vit_weights.load_vit(
        self.folder / 'a.npz',
        shapes(model(grid=(2, 7)), (2 * PATCH, 7 * PATCH)),
      )

  @parameterized.parameters(*SAVE)
  def test_a_head_is_replaced_only_when_asked(self, name):
    params, other = draw(model()), draw(model(num_classes=2), seed=1)
    path = self.folder / name
    SAVE[name](path, params)
    with self.assertRaisesRegex(InputError, "head='replace'"):
      vit_weights.load_vit(path, other)
    found = vit_weights.load_vit(path, other, head='replace')
    self.assert_same(found, params | {'head': other['head']})

  def test_replacing_the_head_drops_a_layer_that_the_model_lacks(self):
    params = draw(model(representation_dim=7))
    vit_weights.save_npz(self.folder / 'a.npz', params)
    other = draw(model(), seed=1)
    with self.assertRaisesRegex(InputError, 'representation_dim'):
      vit_weights.load_vit(self.folder / 'a.npz', other)
    found = vit_weights.load_vit(self.folder / 'a.npz', other, head='replace')
    self.assert_same(found['head'], other['head'])
    self.assert_same(found['block_0'], params['block_0'])

  def test_missing_and_left_over_leaves_are_all_named(self):
    leaves = published()
    del leaves['cls'], leaves[BLOCK.format(i=1) + 'LayerNorm_2/bias']
    leaves['teacher/kernel'] = leaves['head/kernel']
    path = self.write(leaves)
    with self.assertRaisesRegex(
      InputError,
      r"missing \['Transformer/encoderblock_1/LayerNorm_2/bias', 'cls'\]; "
      r"unexpected \['teacher/kernel'\]",
    ):
      vit_weights.load_vit(path, shapes(model()))

  def test_every_leaf_of_another_shape_is_named(self):
    leaves = published()
    for name in ('head/bias', 'Transformer/encoder_norm/scale'):
      leaves[name] = np.zeros(3, np.float32)
    with self.assertRaisesRegex(
      InputError, r'encoder_norm/scale \(3,\).*head/bias \(3,\)'
    ):
      vit_weights.load_vit(self.write(leaves), shapes(model()))

  def test_a_leaf_that_is_there_twice_is_refused(self):
    leaves = published()
    name = BLOCK.format(i=0) + 'LayerNorm_2/bias'
    leaves[name.replace('_2/', '_1/')] = leaves[name]
    with self.assertRaisesRegex(InputError, 'another spelling'):
      vit_weights.load_vit(self.write(leaves), shapes(model()))

  @parameterized.parameters(*SAVE)
  def test_a_damaged_file_is_refused_or_gives_shapes_that_fit(self, name):
    params = draw(model())
    SAVE[name](self.folder / name, params)
    whole = (self.folder / name).read_bytes()
    damaged = self.folder / f'damaged-{name}'
    rng = np.random.default_rng(0)
    for cut in (0, 1, 100, len(whole) // 2, len(whole) - 1):
      damaged.write_bytes(whole[:cut])
      with self.assertRaises(InputError):
        vit_weights.load_vit(damaged, params)
    for _ in range(30):
      bits = bytearray(whole)
      for place in rng.integers(0, min(len(bits), 3000), 5):
        bits[place] = rng.integers(256)
      damaged.write_bytes(bits)
      try:
        found = vit_weights.load_vit(damaged, params)
      except InputError:
        continue
      self.assertEqual(
        jax.tree.map(jnp.shape, found), jax.tree.map(jnp.shape, params)
      )

  def test_a_pickle_is_never_opened(self):
    path = self.write({'cls': np.array([{'a': 1}], dtype=object)})
    with self.assertRaisesRegex(InputError, 'cannot read weights'):
      vit_weights.load_vit(path, shapes(model()))

  @parameterized.parameters('none.npz', 'none.safetensors', '')
  def test_a_file_that_is_not_there_is_named(self, name):
    with self.assertRaisesRegex(InputError, 'cannot read weights from /.*'):
      vit_weights.load_vit(self.folder / name, shapes(model()))

  @parameterized.parameters(
    (dict(position='sincos'), 'learned'), (dict(representation_dim=4), 'head')
  )
  def test_what_hugging_face_lacks_is_not_written(self, fields, message):
    with self.assertRaisesRegex(InputError, message):
      vit_weights.save_safetensors(self.folder / 'a', draw(model(**fields)))

  def test_patches_that_are_averaged_come_back(self):
    net, path = model(pool='average'), self.folder / 'a.safetensors'
    params = draw(net)
    vit_weights.save_safetensors(path, params)
    names = safetensors.numpy.load_file(path)
    self.assertIn('ijepa.layernorm.weight', names)
    loaded = vit_weights.load_vit(path, shapes(net))
    jax.tree.map(np.testing.assert_array_equal, loaded, params)

  def test_a_bare_vit_model_brings_its_pooler(self):
    net = model(representation_dim=WIDTH)
    params = draw(net)
    head = params.pop('head')
    inner = {k: v for k, v in params.items() if k != 'pre_logits'}
    vit_weights.save_safetensors(
      self.folder / 'model.safetensors', inner | {'head': head}
    )
    leaves = safetensors.numpy.load_file(self.folder / 'model.safetensors')
    bare = {
      name.removeprefix('vit.'): leaf
      for name, leaf in leaves.items()
      if not name.startswith('classifier')
    }
    bare['pooler.dense.weight'] = params['pre_logits']['kernel'].T.copy()
    bare['pooler.dense.bias'] = params['pre_logits']['bias']
    safetensors.numpy.save_file(bare, self.folder / 'model.safetensors')
    found = vit_weights.load_vit(
      self.folder, params | {'head': head}, head='replace'
    )
    self.assert_same(found, params | {'head': head})


class ConfigTest(absltest.TestCase):
  def write(self, **fields):
    folder = new_folder(self)
    (folder / 'config.json').write_text(json.dumps(fields))
    return folder

  def test_fields_become_those_of_the_model(self):
    folder = self.write(
      model_type='vit',
      hidden_size=192,
      num_hidden_layers=3,
      num_attention_heads=4,
      intermediate_size=80,
      patch_size=[8, 4],
      hidden_act='gelu_pytorch_tanh',
      layer_norm_eps=1e-5,
      hidden_dropout_prob=0.1,
      attention_probs_dropout_prob=0.2,
      id2label={str(i): f'LABEL_{i}' for i in range(7)},
    )
    self.assertEqual(
      vit.ViT(**vit_weights.hf_config(folder)),
      vit.ViT(
        7,
        patch_size=(8, 4),
        hidden_dim=192,
        mlp_dim=80,
        num_heads=4,
        num_layers=3,
        dropout_rate=0.1,
        attention_dropout_rate=0.2,
        gelu='tanh',
        layer_norm_epsilon=1e-5,
      ),
    )

  def test_what_shapes_do_not_tell_is_taken_from_the_file(self):
    folder = self.write(model_type='vit', num_attention_heads=4)
    (folder / 'model.safetensors').touch()
    net = model(num_heads=4)
    for path in (folder, folder / 'model.safetensors'):
      self.assertEqual(
        vit_weights.as_stored(path, net),
        net.clone(gelu='exact', layer_norm_epsilon=1e-12),
      )
    with self.assertRaisesRegex(InputError, 'num_heads=2: set'):
      vit_weights.as_stored(folder, net.clone(num_heads=2))
    # Neither of authors' files nor of other folders.
    for path in (folder / 'a.npz', self.write(seed=1), new_folder(self)):
      self.assertEqual(vit_weights.as_stored(path, net), net)

  def test_weights_that_are_gone_are_no_other_network(self):
    gone = new_folder(self) / 'gone'
    for path in (gone, gone / 'model.safetensors'):
      with self.assertRaisesRegex(InputError, 'gone.* is not there'):
        vit_weights.as_stored(path, model())
    self.assertEqual(vit_weights.as_stored(gone / 'a.npz', model()), model())

  def test_absent_fields_have_the_defaults_of_transformers(self):
    folder = self.write(model_type='vit')
    fields = vit_weights.hf_config(folder / 'model.safetensors')
    self.assertEqual(fields['hidden_dim'], 768)
    self.assertEqual(fields['gelu'], 'exact')
    self.assertEqual(fields['layer_norm_epsilon'], 1e-12)

  def test_another_network_is_refused(self):
    for fields in (
      {'model_type': 'beit'},
      {'model_type': 'vit', 'qkv_bias': False},
      {'model_type': 'vit', 'hidden_act': 'relu'},
    ):
      with self.assertRaisesRegex(InputError, list(fields)[-1]):
        vit_weights.hf_config(self.write(**fields))

  def test_a_folder_without_a_config_is_refused(self):
    with self.assertRaisesRegex(InputError, 'config.json'):
      vit_weights.hf_config(new_folder(self))


if __name__ == '__main__':
  absltest.main()
