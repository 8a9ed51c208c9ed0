"""Nulls in a config.json are what is absent; what is odd is named."""

import json

import pytest

from repjax import types
from repjax.weights import beit_weights
from repjax.weights import stored_config
from repjax.weights import swin_weights
from repjax.weights import text_config
from repjax.weights import vit_weights

# What a file says beside the fields that are null; how it is read.
READERS = {
  'vit': (dict(model_type='vit'), vit_weights.hf_config),
  'beit': (
    dict(model_type='beit', architectures=['BeitForImageClassification']),
    beit_weights.model,
  ),
  'masked beit': (
    dict(model_type='beit', architectures=['BeitForMaskedImageModeling']),
    beit_weights.model,
  ),
  **{
    family: (dict(model_type=family), text_config.read)
    for family in ('bert', 'roberta', 'gpt2', 'bart')
  },
}


def read(folder, fields, reader):
  (folder / 'config.json').write_text(json.dumps(fields))
  return reader(folder)


class _Asked(dict):
  """A dictionary that remembers what was asked of it."""

  def __init__(self, fields):
    super().__init__(fields)
    self.names = set()

  def get(self, name, default=None):
    self.names.add(name)
    return super().get(name, default)


@pytest.mark.parametrize('kind', READERS)
def test_a_null_is_what_is_absent(kind, tmp_path, monkeypatch):
  fields, reader = READERS[kind]
  asked = _Asked(fields)
  with monkeypatch.context() as patch:
    patch.setattr(json, 'loads', lambda _: asked)
    expected = read(tmp_path, fields, reader)
  names = asked.names - fields.keys()
  assert len(names) > 8
  assert read(tmp_path, fields, reader) == expected
  for name in names:
    assert read(tmp_path, {**fields, name: None}, reader) == expected, name
  everything = {**dict.fromkeys(names), 'label2id': None, **fields}
  assert read(tmp_path, everything, reader) == expected


@pytest.mark.parametrize('kind', ['vit', 'beit'])
def test_classes_are_counted_or_said(kind, tmp_path):
  fields, reader = READERS[kind]

  def classes(**more):
    found = read(tmp_path, {**fields, **more}, reader)
    return found['num_classes'] if kind == 'vit' else found.num_classes

  assert classes(id2label={'0': 'a', '1': 'b', '2': 'c'}) == 3
  assert classes(id2label=None) == classes() == 2
  assert classes(id2label=None, num_labels=5) == 5


@pytest.mark.parametrize('content', ['[]', '3', 'null', '"a"'])
@pytest.mark.parametrize('kind', READERS)
def test_what_is_no_object_is_refused(kind, content, tmp_path):
  (tmp_path / 'config.json').write_text(content)
  with pytest.raises(types.InputError, match='holds no JSON object'):
    READERS[kind][1](tmp_path)


@pytest.mark.parametrize('kind', READERS)
def test_a_byte_order_mark_is_no_content(kind, tmp_path):
  fields, reader = READERS[kind]
  expected = read(tmp_path, fields, reader)
  (tmp_path / 'config.json').write_text(json.dumps(fields), 'utf-8-sig')
  assert reader(tmp_path) == expected


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('hidden_size', '768'),
    ('hidden_size', True),
    ('num_hidden_layers', 2.5),
    ('num_hidden_layers', [2]),
    ('layer_norm_eps', 'tiny'),
    ('hidden_dropout_prob', {}),
    ('hidden_act', 3),
    ('hidden_act', ['gelu']),
  ],
)
@pytest.mark.parametrize('kind', ['vit', 'beit', 'bert'])
def test_values_of_another_kind_are_refused_by_name(
  kind, name, value, tmp_path
):
  fields, reader = READERS[kind]
  with pytest.raises(types.InputError, match=rf'config\.json of .*{name} must'):
    read(tmp_path, {**fields, name: value}, reader)
  whole = {**fields, 'hidden_dropout_prob': 0, 'patch_size': [8, 16]}
  assert read(tmp_path, whole, reader)


@pytest.mark.parametrize('value', [[1, 2, 3], 'large', 2.5])
@pytest.mark.parametrize('kind', ['vit', 'beit'])
def test_patches_have_one_side_or_two(kind, value, tmp_path):
  fields, reader = READERS[kind]
  with pytest.raises(types.InputError, match='patch_size must be like 16'):
    read(tmp_path, {**fields, 'patch_size': value}, reader)


def test_rates_of_dropout_are_told_from_each_other(tmp_path):
  both = 'hidden_dropout_prob', 'attention_probs_dropout_prob'
  for kind, names in (
    ('bert', both),
    ('roberta', both),
    ('gpt2', ('resid_pdrop', 'attn_pdrop')),
    ('bart', ('dropout', 'attention_dropout')),
  ):
    said = {**READERS[kind][0], names[0]: 0.3, names[1]: 0.2}
    said |= {'embd_pdrop': 0.3} if kind == 'gpt2' else {}
    found = read(tmp_path, said, READERS[kind][1]).fields
    told = found['dropout_rate'], found['attention_dropout_rate']
    assert told == (0.3, 0.2), kind
  said = {both[0]: 0.3, both[1]: 0.2, 'drop_path_rate': 0.4}
  of_beit = {**READERS['beit'][0], **said}
  encoder = read(tmp_path, of_beit, beit_weights.model).encoder
  swin = read(tmp_path, {'model_type': 'swin', **said}, swin_weights.hf_config)
  for made in (vars(encoder), swin):
    rates = 'dropout_rate', 'attention_dropout_rate', 'drop_path_rate'
    assert [made[x] for x in rates] == [0.3, 0.2, 0.4]


def test_weights_of_another_gelu_are_refused(tmp_path):
  path = tmp_path / 'model.safetensors'
  stored_config.check_gelu(path, 'exact', ('swin',))  # Nothing is said.
  for kind, act, says in (
    ('swin', 'gelu_new', "GELU is not 'exact'"),
    ('vit', 'gelu', 'model_type must be one of'),
  ):
    said = json.dumps(dict(model_type=kind, hidden_act=act))
    (tmp_path / 'config.json').write_text(said)
    with pytest.raises(types.InputError, match=says):
      stored_config.check_gelu(path, 'exact', ('swin',))
