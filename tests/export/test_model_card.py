"""The card of a model: what a stranger must know, and no place of a machine."""

from repjax.export import card

FACTS = card.Facts(
  recipe='configs/sam.py:small',
  step=1500,
  config={
    'data': {'name': 'digits', 'dir': '/home/me/sets'},
    'weights': '/home/me/secret/roberta',
    'tx': {'learning_rate': 0.1},
  },
  class_names=('cat', 'dog'),
  results={'test/accuracy': 0.98},
  privacy=None,
  versions={'jax': '0.7.2'},
)
USE = card.Use(
  'transformers', 'model = 1', 'image-classification', ('A note.',)
)


def test_a_card_says_what_was_trained():
  text = card.text(FACTS, USE)
  head = text.split('---')[1]
  assert 'library_name: transformers' in head
  assert 'pipeline_tag: image-classification' in head
  assert 'configs/sam.py:small' in text and '1,500 steps' in text
  assert '| test/accuracy | 0.98 |' in text and '| jax | 0.7.2 |' in text
  assert '| classes, in the order of logits | ["cat", "dog"] |' in text
  assert 'A note.' in text and 'Nothing is promised' in text
  assert '"learning_rate": 0.1' in text


def test_no_place_of_a_machine_is_told():
  splits = ['labelled:/home/me/shop', 'labelled:~/town', 'test']
  facts = FACTS._replace(
    config={**FACTS.config, 'data': {**FACTS.config['data'], 'splits': splits}},
    results={f'{x}/accuracy': 0.5 for x in splits},
  )
  text = card.text(facts, USE)
  assert '/home/me' not in text and '~' not in text
  assert '"dir"' not in text and '"name": "digits"' in text
  assert '"weights": "roberta"' in text
  for split in ('labelled:shop', 'labelled:town', 'test'):
    assert f'"{split}"' in text and f'| {split}/accuracy | 0.5 |' in text


def test_what_is_private_is_stated():
  statement = {
    'epsilon': 2.99,
    'delta': 1e-5,
    'unit': 'one row of the training set',
    'not_covered': ('the choice of hyperparameters',),
  }
  text = card.text(FACTS._replace(privacy=statement, results={}), USE)
  assert '(2.99, 1e-05)-differential privacy of one row' in text
  assert '- the choice of hyperparameters' in text
  assert 'Nothing is promised' not in text
  assert 'Nothing was measured at step 1,500' in text


def test_a_recipe_may_have_no_group_of_data():
  text = card.text(FACTS._replace(config={'tx': {'rate': 0.1}}), USE)
  assert '["cat", "dog"]' in text and '"rate": 0.1' in text
  facts = FACTS._replace(config={'tx': {'rate': 0.1}}, class_names=())
  assert 'no group config.data: what it read is not told' in card.text(
    facts, USE
  )
