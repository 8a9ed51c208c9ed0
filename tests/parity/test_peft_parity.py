"""LoRA and prefix tuning against Hugging Face's peft on the same weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax.layers import adapters
from repjax.models import text_heads
from repjax.models import transformer
from repjax.weights import peft_files
from repjax.weights import text_config
from repjax.weights import text_weights

pytestmark = pytest.mark.parity
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
peft = pytest.importorskip('peft')

VOCAB, LENGTH, PREFIX = 50, 7, 3
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(4, VOCAB, (2, LENGTH))
WEIGHTS = RNG.normal(size=(2, LENGTH, VOCAB)).astype(np.float32)
BERT = dict(
  vocab_size=VOCAB,
  hidden_size=32,
  intermediate_size=48,
  num_attention_heads=4,
  num_hidden_layers=2,
  max_position_embeddings=20,
  num_labels=3,
)
GPT2 = dict(vocab_size=VOCAB, n_embd=32, n_head=4, n_layer=2, n_positions=20)


def shake(model):
  """Every leaf drawn anew, so that none hides an error."""
  with torch.no_grad():
    for name, leaf in model.named_parameters():
      is_norm = 'norm' in name.lower() or '.ln_' in name
      center = 1.0 if leaf.ndim == 1 and is_norm and 'weight' in name else 0
      leaf.copy_(center + 0.2 * torch.randn_like(leaf))
  if hasattr(model, 'tie_weights'):
    model.tie_weights()
  return model.eval()


def torch_logits(model):
  with torch.no_grad():
    return model(torch.tensor(TOKENS)).logits.numpy()


def torch_grads(model):
  """Logits and name -> gradient of a sum of logits with random weights."""
  model.zero_grad()
  logits = model(torch.tensor(TOKENS)).logits
  weights = WEIGHTS[:, 0, :3] if logits.ndim == 2 else WEIGHTS
  (logits * torch.tensor(weights)).sum().backward()
  return logits.detach().numpy(), {
    name: leaf.grad.numpy()
    for name, leaf in model.named_parameters()
    if leaf.grad is not None
  }


def our_grads(model, variables):
  def total(params):
    logits = model.apply({**variables, 'params': params}, TOKENS, train=False)
    weights = WEIGHTS[:, 0, :3] if logits.ndim == 2 else WEIGHTS
    return (logits * weights).sum(), logits

  grads, logits = jax.jit(jax.grad(total, has_aux=True))(variables['params'])
  return np.asarray(logits), grads


def base_variables(model, folder, family):
  """Variables of an adapted model with the weights of a file."""
  init = functools.partial(model.init, train=False)
  variables = jax.jit(init)(jax.random.key(0), TOKENS)
  base = model.plan.model
  shapes = jax.eval_shape(
    functools.partial(base.init, train=False), jax.random.key(0), TOKENS
  )['params']
  params = text_weights.load(folder, shapes, family=family)
  return adapters.with_base(model, variables, params)


def assert_close(found, expected):
  assert np.abs(expected).max() > 0.05
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def grads_as_file(tmp_path, save, grads):
  """Names and layout of a file of peft for a tree of gradients."""
  folder = tmp_path / 'grads'
  save(folder, grads)
  return peft_files.torch_layout.read(folder, 'adapter_model.safetensors')


def test_lora_on_bert_in_both_directions(tmp_path):
  torch.manual_seed(0)
  config = transformers.BertConfig(**BERT)
  theirs = shake(transformers.BertForSequenceClassification(config))
  theirs.save_pretrained(tmp_path / 'base')
  theirs = peft.get_peft_model(
    theirs,
    peft.LoraConfig(
      r=4,
      lora_alpha=12,
      lora_dropout=0.0,
      target_modules=['query', 'value', 'output.dense'],
      modules_to_save=['classifier'],
      task_type='SEQ_CLS',
    ),
  )
  with torch.no_grad():
    for name, leaf in theirs.named_parameters():
      if 'lora_' in name:
        leaf.copy_(0.3 * torch.randn_like(leaf))
  theirs.eval().save_pretrained(tmp_path / 'adapter')
  expected, expected_grads = torch_grads(theirs)

  stored = text_config.read(tmp_path / 'base')
  model = adapters.adapt(
    text_heads.Classifier(**stored.fields, num_classes=3),
    {r'.*/(query|value|out)': peft_files.lora_settings(tmp_path / 'adapter')},
    train=lambda path: path[0] == 'head',
  )
  names = functools.partial(text_weights.stored_name, family='bert')
  variables = base_variables(model, tmp_path / 'base', 'bert')
  variables = peft_files.load_lora(
    tmp_path / 'adapter', model, variables, names=names
  )
  found, grads = our_grads(model, variables)
  assert_close(found, expected)
  save = functools.partial(
    peft_files.save_lora, model=model, names=names, task_type='SEQ_CLS'
  )
  arrays = grads_as_file(
    tmp_path, lambda folder, tree: save(folder, params=tree), grads
  )
  assert len(arrays) == 2 * 2 * 4 + 2
  for name, array in arrays.items():
    name = name.replace('.weight', '.default.weight')
    if 'classifier' in name:
      name = name.replace('classifier', 'classifier.modules_to_save.default')
      name = name.replace('.default.weight', '.weight').replace(
        'save.weight', 'save.default.weight'
      )
    assert_close(array, expected_grads[name])

  # Our file in peft, on a fresh copy of the base.
  save(tmp_path / 'ours', params=variables['params'])
  fresh = transformers.BertForSequenceClassification.from_pretrained(
    tmp_path / 'base'
  )
  loaded = peft.PeftModel.from_pretrained(fresh, tmp_path / 'ours').eval()
  np.testing.assert_allclose(torch_logits(loaded), expected, atol=1e-6)


def test_lora_on_gpt2_in_both_directions(tmp_path):
  torch.manual_seed(1)
  theirs = shake(transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)))
  theirs.save_pretrained(tmp_path / 'base')
  lora = peft.LoraConfig(
    r=4, target_modules=['c_attn', 'c_fc'], fan_in_fan_out=True
  )
  theirs = peft.get_peft_model(theirs, lora)
  with torch.no_grad():
    for name, leaf in theirs.named_parameters():
      if 'lora_' in name:
        leaf.copy_(0.3 * torch.randn_like(leaf))
  theirs.eval().save_pretrained(tmp_path / 'adapter')
  expected = torch_logits(theirs)

  model = adapters.adapt(
    transformer.DecoderLM(**text_config.read(tmp_path / 'base').fields),
    {
      r'.*/(query|key|value|hidden)': peft_files.lora_settings(
        tmp_path / 'adapter'
      )
    },
  )
  names = functools.partial(text_weights.stored_name, family='gpt2')
  variables = base_variables(model, tmp_path / 'base', 'gpt2')
  variables = peft_files.load_lora(
    tmp_path / 'adapter', model, variables, names=names
  )
  apply = jax.jit(functools.partial(model.apply, train=False))
  found = np.asarray(apply(variables, TOKENS))
  assert_close(found, expected)
  # Not a copy of one A any more: each of the three has its own.
  variables['params'] = jax.tree.map(
    lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape),
    variables['params'],
  )
  expected = np.asarray(apply(variables, TOKENS))
  peft_files.save_lora(
    tmp_path / 'ours', model, variables['params'], names=names
  )
  fresh = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / 'base')
  loaded = peft.PeftModel.from_pretrained(fresh, tmp_path / 'ours').eval()
  assert_close(torch_logits(loaded), expected)


@pytest.mark.parametrize(
  ('family', 'fields'),
  [
    ('bert', dict(init_lora_weights='gaussian')),
    ('bert', dict(init_lora_weights='orthogonal')),
    ('bert', dict(init_lora_weights='mica')),
    ('bert', dict(init_lora_weights='pissa')),
    ('bert', dict(init_lora_weights='olora')),
    ('bert', dict(init_lora_weights='pissa', use_rslora=True)),
    ('bert', dict(init_lora_weights='olora', alpha_pattern={'query': 3})),
    (
      'bert',
      dict(
        rank_pattern={'layer.1.*query': 2, '1.output.dense': 5},
        alpha_pattern={'dense': 7, 'output.dense': 1},
      ),
    ),
    ('gpt2', dict(init_lora_weights='pissa')),
    ('gpt2', dict(init_lora_weights='pissa', rank_pattern={'c_attn': 12})),
    ('gpt2', dict(rank_pattern={'c_fc': 2}, use_rslora=True)),
  ],
  ids=str,
)
def test_a_file_is_what_peft_reloads(family, fields, tmp_path):
  torch.manual_seed(3)
  if family == 'bert':
    config = transformers.BertConfig(**BERT)
    theirs = shake(transformers.BertForMaskedLM(config))
    kind, targets = text_heads.MaskedLM, ['query', 'output.dense']
  else:
    theirs = shake(
      transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))
    )
    kind, targets = transformer.DecoderLM, ['c_attn', 'c_fc']
  theirs.save_pretrained(tmp_path / 'base')
  base_logits = torch_logits(theirs)
  fresh = type(theirs).from_pretrained(tmp_path / 'base')
  settings = peft.LoraConfig(
    r=4,
    lora_alpha=12,
    target_modules=targets,
    fan_in_fan_out=family == 'gpt2',
    **fields,
  )
  theirs = peft.get_peft_model(theirs, settings)
  with torch.no_grad():
    for name, leaf in theirs.named_parameters():
      if 'lora_' in name:
        leaf.add_(0.1 * torch.randn_like(leaf))
  theirs.eval().save_pretrained(tmp_path / 'adapter')
  loaded = peft.PeftModel.from_pretrained(fresh, tmp_path / 'adapter').eval()
  expected = torch_logits(loaded)
  assert np.abs(expected - base_logits).max() > 0.05

  names = functools.partial(text_weights.stored_name, family=family)
  base = kind(**text_config.read(tmp_path / 'base').fields)
  shapes = jax.eval_shape(
    functools.partial(base.init, train=False), jax.random.key(0), TOKENS
  )['params']
  rules = peft_files.lora_rules(tmp_path / 'adapter', shapes, names=names)
  model = adapters.adapt(base, rules)
  variables = base_variables(model, tmp_path / 'base', family)
  variables = peft_files.load_lora(
    tmp_path / 'adapter', model, variables, names=names
  )
  apply = jax.jit(functools.partial(model.apply, train=False))
  assert_close(np.asarray(apply(variables, TOKENS)), expected)


def test_a_prefix_on_gpt2_in_both_directions(tmp_path):
  torch.manual_seed(2)
  theirs = shake(transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)))
  theirs.save_pretrained(tmp_path / 'base')
  theirs = peft.get_peft_model(
    theirs,
    peft.PrefixTuningConfig(
      task_type='CAUSAL_LM', num_virtual_tokens=PREFIX, prefix_projection=False
    ),
  ).eval()
  theirs.save_pretrained(tmp_path / 'adapter')
  expected, expected_grads = torch_grads(theirs)

  # peft's text begins at position l.
  fields = text_config.read(tmp_path / 'base').fields
  fields |= dict(
    num_positions=fields['num_positions'] - PREFIX, position_offset=PREFIX
  )
  model = adapters.adapt(
    transformer.DecoderLM(**fields), {'.*/attention': adapters.prefix(PREFIX)}
  )
  variables = base_variables(model, tmp_path / 'base', 'gpt2')
  variables['params'] = peft_files.load_prefix(
    tmp_path / 'adapter', variables['params']
  )
  found, grads = our_grads(model, variables)
  assert_close(found, expected)
  save = functools.partial(peft_files.save_prefix, task_type='CAUSAL_LM')
  arrays = grads_as_file(tmp_path, save, grads)
  (expected_grad,) = expected_grads.values()
  assert_close(arrays['prompt_embeddings'], expected_grad)

  save(tmp_path / 'ours', variables['params'])
  fresh = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / 'base')
  loaded = peft.PeftModel.from_pretrained(fresh, tmp_path / 'ours').eval()
  np.testing.assert_allclose(torch_logits(loaded), expected, atol=1e-5)
