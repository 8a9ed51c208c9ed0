"""What links of an `optax.chain` that need more than the gradient check.

A link cannot see what stands around it: `optax.chain` is a function of
functions. But all links of a chain get one `grad_fn`, in which each leaves its
name (`types.Asked`), so that one that would undo another is refused while the
step is traced, before any compute.
"""

import inspect
from typing import Any

import jax
import optax

from repjax import types
from repjax.types import InputError


def begin(name: str, params: types.PyTree) -> None:
  """Refuses, in `init`, what a link that asks `grad_fn` cannot stand in.

  Args:
    name: Of the link.
    params: What its `init` gets.

  Raises:
    InputError: If `params` are those of `optax.masked` or `multi_transform`,
      or `optax.MultiSteps` stands around the link.
  """
  if _is_partial(params):
    raise InputError(
      f'{name} asks grad_fn about all parameters, and optax.masked or '
      'multi_transform has taken some out of the tree: put it in front of '
      f'them, optax.chain({name}(...), optax.masked(...)), or train a part by '
      'repjax.layers.frozen.train_only.'
    )
  if _MULTI_STEPS in around():
    raise InputError(
      f'optax.MultiSteps around {name} loses mini-batches, since grad_fn is '
      'that of the last one alone: give all k to one update (microbatches=k of '
      'repjax.gradients.GradFn, config.step.microbatches, or '
      f'optim.over_batches), or put MultiSteps behind {name} in the chain.'
    )


_MULTI_STEPS = optax.MultiSteps.init.__code__


def around() -> set[Any]:
  """Code of all calls around: only they tell a link who initialises it."""
  found, frame = set[Any](), inspect.currentframe()
  while frame is not None:
    found.add(frame.f_code)
    frame = frame.f_back
  return found


def ask(
  name: str,
  grad_fn: types.GradFn | None,
  *,
  params: types.PyTree,
  question: str = '__call__',
  updates: types.PyTree = None,
) -> None:
  """Refuses, in `update`, a link that would undo another or be undone.

  Nothing is known of what stands around a link whose `grad_fn` is a function
  of the user's own.

  Args:
    name: Of the link.
    grad_fn: A `repjax.types.GradFn`, or None where the caller gave none.
    params: Or None where the caller gave none.
    question: The method of `grad_fn` that the link asks.
    updates: What the link got and replaces by a gradient of its own; None of
      one that looks on.

  Raises:
    InputError: If something is missing, the link stands behind one after which
      nothing may ask, or it would drop what others made of the gradient.
  """
  check(name, params=params, grad_fn=grad_fn)
  if not hasattr(grad_fn, question):
    raise InputError(
      f'{name} asks grad_fn.{question}, which a function that gives gradients '
      'alone does not have: make grad_fn by repjax.gradients.GradFn.'
    )
  asked = getattr(grad_fn, 'asked', None)
  if asked is None:
    return
  leaves = jax.tree.leaves(updates)
  is_plain = asked.plain is not None and all(
    a is b for a, b in zip(leaves, asked.plain, strict=False)
  )
  if updates is not None and is_plain:  # The first of its chain.
    asked.made_by = asked.closed_by = ''
  if asked.closed_by:
    raise InputError(
      f'{name} behind {asked.closed_by} would ask for data again, and what it '
      'gets is neither clipped nor noised: leave one of them out of the chain.'
    )
  if updates is None:
    asked.seen_by = name
    return
  if asked.made_by or (asked.plain is not None and not is_plain):
    raise InputError(
      f'{name} makes a gradient of its own, and that of '
      f'{asked.made_by or "the links before it"} is lost: put {name} first in '
      'the chain, and one such link alone (in a loop of your own, call grad_fn '
      'and tx.update in one traced function).'
    )
  asked.made_by = name


def close(name: str, grad_fn: types.GradFn) -> None:
  """Lets nothing behind a link ask `grad_fn` again, of whomever it is.

  Raises:
    InputError: If a link in front keeps in its state what it has seen.
  """
  asked = getattr(grad_fn, 'asked', None)
  if asked is None:
    return
  if asked.seen_by:
    raise InputError(
      f'{name} behind {asked.seen_by} protects nothing, which keeps what rows '
      'say without noise in its state: leave one of them out of the chain.'
    )
  asked.closed_by = name


def asking(opt_state: types.PyTree) -> list[str]:
  """Names of all links in a state that ask `grad_fn`, which have `asks`."""
  is_link = lambda x: hasattr(x, 'asks')  # noqa: E731
  leaves = jax.tree.leaves(opt_state, is_leaf=is_link)
  return [x.asks() for x in leaves if is_link(x)]


def check(name: str, **needed: Any) -> None:
  """Says what a link misses in its `update`.

  Args:
    name: Of the link.
    **needed: Those of `params` and `grad_fn` (a `repjax.types.GradFn`) that it
      cannot do without, None where the caller gave none.

  Raises:
    InputError: One of them is None.
  """
  missing = [key for key, value in needed.items() if value is None]
  if missing:
    raise InputError(
      f'{name} needs {" and ".join(missing)}: call tx.update(grads, opt_state, '
      'params, grad_fn=grad_fn)'
    )


def check_fixed(name: str, **settings: Any) -> None:
  """Refuses arrays in the place of numbers that stay through a run.

  Raises:
    InputError: If one is an array, as `optax.inject_hyperparams` makes it.
  """
  for field, value in settings.items():
    if isinstance(value, jax.Array):
      raise InputError(
        f'{name} needs {field} as a number of Python, which stays: name it in '
        'static_args of optax.inject_hyperparams.'
      )


def is_known(*values: Any) -> bool:
  """Whether numbers can be looked at, which traced ones cannot."""
  return not any(isinstance(x, jax.core.Tracer) for x in values)


def _is_partial(params):
  is_out = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
  return any(map(is_out, jax.tree.leaves(params, is_leaf=is_out)))
