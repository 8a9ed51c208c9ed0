"""Protocol: encoders learn on public text, then privately on other text.

The public part are chapters of `python_topics` without labels, on which an
encoder learns to fill gaps; the private part are pieces of the other chapters,
whose chapter it learns to tell (`labelled_text.topic_pieces`). Nothing of the
private part, the vocabulary included, is seen before private training.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from repjax import start
from repjax import types
from repjax.data.text import labelled_text
from repjax.data.text import running_text
from repjax.data.text import tokens
from repjax.experiments import private
from repjax.layers import adapters
from repjax.methods import finetuning
from repjax.methods import supervised
from repjax.models import text_heads
from repjax.protocols import pretraining
from repjax.protocols import side_by_side


class Task(NamedTuple):
  """Public and private text.

  Attributes:
    vocab_size: Number of tokens; the last one hides others in pretraining.
    num_classes: Number of private chapters.
    public: 'tokens' [N, L], windows of the public chapters.
    train: 'tokens', 'token_mask' [n, L] and 'label' [n].
    test: The same of other pieces.
  """

  vocab_size: int
  num_classes: int
  public: Mapping[str, np.ndarray]
  train: Mapping[str, np.ndarray]
  test: Mapping[str, np.ndarray]


def read(
  *, num_classes: int, size: int, length: int, vocab_size: int, skip: int = 0
) -> Task:
  """Reads the task.

  Args:
    num_classes: See `labelled_text.topic_pieces`.
    size: See there.
    length: L, tokens of a row; longer pieces are cut.
    vocab_size: Subwords that are learned from the public chapters.
    skip: See `labelled_text.topic_pieces`.
  """
  pieces = labelled_text.topic_pieces(
    num_classes=num_classes, size=size, skip=skip
  )
  tokenizer = tokens.Subwords.train(pieces.public, vocab_size=vocab_size)
  train, test = (
    labelled_text.rows(
      words,
      labels,
      tokenizer=tokenizer,
      length=length,
      num_classes=num_classes,
    ).columns()
    for words, labels in (
      (pieces.train, pieces.train_labels),
      (pieces.test, pieces.test_labels),
    )
  )
  windows = running_text.train_windows(
    running_text.stream(pieces.public, tokenizer),
    length=length - 1,
    stride=max(1, length // 3),
  )
  return Task(
    tokenizer.vocab_size + 1,
    num_classes,
    windows.columns(),
    train,
    test,
  )


def pretrain(
  task: Task,
  encoder: Mapping[str, Any],
  *,
  steps: int,
  batch_size: int,
  learning_rate: float,
  seed: int,
) -> types.PyTree:
  """Fills gaps of the public text, without privacy (Devlin et al., 2019).

  Args:
    task: Its `public` part is read.
    encoder: Fields of `transformer.Encoder`.
    steps: Number of updates.
    batch_size: Windows of a step.
    learning_rate: Of AdamW, at its peak.
    seed: Of everything random.

  Returns:
    The parameters of the encoder.
  """
  params = pretraining.run(
    pretraining.masked_language_model(
      task.vocab_size, encoder, steps=steps, learning_rate=learning_rate
    ),
    task.public,
    steps=steps,
    batch_size=batch_size,
    seed=seed,
    vectorize=True,
  )
  return {name: params[name] for name in ('token_embedding', 'encoder')}


def largest_or_not(task: Task) -> Task:
  """The task to tell the largest chapter, about half of all rows, from others.

  With a class for each chapter private training learns nothing but the largest:
  clipped gradients give every row the same say, and half of the rows outvote
  the others.
  """

  def merge(columns):
    return {**columns, 'label': np.minimum(columns['label'], 1)}

  return task._replace(
    num_classes=2, train=merge(task.train), test=merge(task.test)
  )


def finetune(
  name: str,
  task: Task,
  encoder: Mapping[str, Any],
  pretrained: types.PyTree,
  *,
  plan: private.Plan,
  tx: Callable[[private.Plan], optax.GradientTransformation],
  adapter: Mapping[str, Any],
  seeds: Sequence[int],
) -> side_by_side.Trained:
  """Tells chapters, privately; heads, batches and noise are each seed's own.

  Args:
    name: For the progress lines.
    task: What is learned.
    encoder: Fields of `transformer.Encoder`.
    pretrained: What `pretrain` has returned, equal for all seeds.
    plan: For the rows of `task.train`.
    tx: Makes the optax chain of a plan.
    adapter: What trains: arguments of `finetuning.adapt`.
    seeds: S seeds.
  """
  model = finetuning.adapt(
    text_heads.Classifier(
      task.vocab_size,
      num_classes=task.num_classes,
      pool='mean',
      pooler=False,
      **encoder,
    ),
    **adapter,
  )
  method = supervised.make(model, tx(plan), inputs=supervised.text_inputs)
  columns = side_by_side.per_seed(task.train, seeds)

  def begin(rng, columns):
    row = {name: x[:1] for name, x in columns.items()}
    # The fresh parameters have made the key of the noise, a seed its own.
    return start.fill(
      method.init(rng, {**row, 'mask': jnp.ones(1)}),
      lambda own: {**own, **pretrained},
      keep=adapters.added(model),
    )

  rngs = jax.vmap(jax.random.key)(jnp.asarray(seeds))
  return side_by_side.train(
    name,
    method,
    columns,
    task.test,
    seeds=seeds,
    batch_size=plan.capacity,
    steps=plan.steps,
    points=8,
    states=jax.jit(jax.vmap(begin))(rngs, columns),
    order=side_by_side.poisson_order(plan, seeds),
  )
