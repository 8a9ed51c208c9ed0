"""What the launchers share: flags, one-line errors and exit codes.

Exit codes: 0 finished; 1 usage, config or data; 3 a loss or a prediction was
not finite; 74 a file could not be written; 75 stopped by a signal, so run the
same command again: what can be saved is.
"""

from collections.abc import Callable
from collections.abc import Sequence
import os
import pathlib
import re
import sys
import traceback
from typing import Any

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from launch.lib import manual
from launch.lib import process
from launch.lib import recipes
from repjax import trees
from repjax import types

USAGE, NON_FINITE, IO_ERROR, PREEMPTED = 1, 3, 74, process.STOPPED

_ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

_CONFIG_HELP = (
  'Config file and preset, for example configs/sam.py:small; then '
  '--config.x.y=value overrides fields of it.'
)
_DATA_DIR_HELP = (
  "Folder of prepared TFDS sets; '' means $TFDS_DATA_DIR or TFDS's default. "
  'Embedded sets (digits) need none. With --config.data.name=folder, csv, '
  "jsonl or npz your own folder or file (README, 'Your own data')."
)
_PLATFORM_HELP = 'Fail unless JAX runs on it: cpu, gpu or tpu.'


def define_config() -> flags.FlagHolder:
  """Defines --config with its overrides, and --print_config."""
  flags.DEFINE_bool(
    'print_config',
    False,
    'Print every field of --config with its value, what is overridden, and '
    'what it means; then stop.',
  )
  return config_flags.DEFINE_config_file('config', None, _CONFIG_HELP)


def define_data_dir() -> flags.FlagHolder:
  """Defines --data_dir."""
  return flags.DEFINE_string('data_dir', '', _DATA_DIR_HELP)


def define_devices() -> None:
  """Defines the flags that `initialize` reads."""
  flags.DEFINE_enum('platform', None, ['cpu', 'gpu', 'tpu'], _PLATFORM_HELP)
  flags.DEFINE_string(
    'coordinator_address',
    None,
    'host:port of process 0. Not needed on SLURM, Open MPI, GKE and TPU '
    'pods, which are detected.',
  )
  flags.DEFINE_integer('num_processes', None, 'Number of processes of the job.')
  flags.DEFINE_integer('process_id', None, 'Index of this process.')
  flags.DEFINE_enum(
    'distributed',
    'auto',
    ['auto', 'on', 'off'],
    'Without the three flags above: detect a cluster, insist on one, or do '
    'not look.',
  )
  flags.DEFINE_bool(
    'compilation_cache',
    True,
    'Keep compiled programs in ~/.cache/repjax, so that the next launch '
    'starts faster.',
  )


def initialize() -> None:
  """Joins the job's processes and checks the platform; before any compute."""
  import jax

  from repjax import clusters

  values = flags.FLAGS
  clusters.initialize(
    values.coordinator_address,
    values.num_processes,
    values.process_id,
    detect=values.distributed,
  )
  # A folder that JAX was told ($JAX_COMPILATION_CACHE_DIR) stays.
  settings: Any = jax.config  # Its type does not name the settings.
  if values.compilation_cache and not settings.jax_compilation_cache_dir:
    from repjax.data.reading import cache

    jax.config.update(
      'jax_compilation_cache_dir', str(cache.folder() / 'compiled')
    )
  try:
    backend = jax.default_backend()
  except (RuntimeError, AssertionError) as error:
    raise types.InputError(
      f'JAX_PLATFORMS={os.environ.get("JAX_PLATFORMS", "")}: JAX finds no such '
      f'device ({error or "no plugin for it"}). Leave it out, or install what '
      'it needs: pip install -e ".[cuda]" or ".[tpu]".'
    ) from error
  if values.platform not in (None, backend):
    extra = {'gpu': 'cuda', 'tpu': 'tpu'}.get(values.platform)
    hint = f' Install it with: pip install -e ".[{extra}]"' if extra else ''
    raise types.InputError(
      f'--platform={values.platform}, but JAX found only {backend}.{hint}'
    )
  if backend == 'cpu' and pathlib.Path('/proc/driver/nvidia').exists():
    logging.warning(
      'An NVIDIA GPU is here, but JAX runs on the CPU: '
      'pip install -e ".[cuda]", or give --platform=cpu to be sure.'
    )
  logging.info(
    'process %d of %d, %d device(s) of %d: %s',
    jax.process_index(),
    jax.process_count(),
    jax.local_device_count(),
    jax.device_count(),
    jax.devices()[0].device_kind,
  )


def run(main: Callable[[], None]) -> None:
  """Parses flags and runs `main`; ends the process with its exit code."""
  process.begin()
  try:
    app.run(lambda argv: _guarded(main, argv), flags_parser=_parse)
  except BaseException as error:
    process.end_of(error)


def _guarded(main, argv):
  del argv  # `_parse` has refused anything that is left.
  _log_plainly()
  try:
    main()
  except types.InputError as error:
    _fail(USAGE, error)
  except types.NonFiniteError as error:
    _fail(NON_FINITE, error)
  except types.PreemptedError as error:
    _fail(PREEMPTED, error)
  except OSError as error:
    _fail(IO_ERROR, error)
  except RuntimeError as error:  # As JAX's are, which not all launchers load.
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    rows = '--config.eval_batch_size, beside --config=RECIPE'
    if 'batch_size' in flags.FLAGS:
      rows = '--batch_size'
    told = types.InputError(
      f'the device is out of memory: take fewer rows at a time by {rows}.'
    )
    told.__cause__ = error
    _fail(USAGE, told)


def _fail(code: int, error: Any) -> None:
  text = ' '.join(str(error).split())
  kind = 'STOPPED' if code == PREEMPTED else 'ERROR'
  # To log.txt, where there is one; on the screen one line is enough, but for
  # --verbosity=1.
  if error.__cause__ is not None:
    lines = traceback.format_exception(error.__cause__)
    logging.error('%s', ''.join(lines).rstrip())
  logging.error('%s', text)
  print(f'{kind}: {text}', file=sys.stderr, flush=True)
  raise SystemExit(code)


def _log_plainly():
  """INFO lines of repjax as plain text; of libraries, warnings only."""
  import logging as python_logging

  all_of_it = logging.get_verbosity() > logging.INFO
  logging.set_verbosity(logging.INFO)
  ours = tuple(str(_ROOT / name) for name in ('repjax', 'launch', 'configs'))

  def wanted(record):
    if record.levelno == python_logging.ERROR and record.pathname == __file__:
      return all_of_it  # `_fail` prints the last line itself.
    if '/orbax/' in record.pathname or record.name == 'asyncio':
      # What matters of it, `checkpoint` says itself. Orbax alone runs tasks:
      # of a save that fails, all but the first go unread and are logged
      # whenever they happen to be collected.
      return False
    return record.levelno >= python_logging.WARNING or (
      record.pathname.startswith(ours)
    )

  handler = logging.get_absl_handler()
  handler.addFilter(wanted)
  handler.setFormatter(_PlainFormatter())


class _PlainFormatter:
  def format(self, record):
    message = record.getMessage()
    if record.levelname == 'INFO':
      return message
    return f'{record.levelname}: {message}'


def config_name() -> tuple[str, str]:
  """(file, preset) of --config; the preset is '' where none was given."""
  name = config_flags.get_config_filename(flags.FLAGS['config'])
  file, _, preset = name.partition(':')
  return file, preset


def _parse(argv: Sequence[str]) -> list[str]:
  """Flags of the command line; what is wrong with them in one line."""
  argv = [_at_home(x) for x in argv]
  if manual.asks_for_help(argv[1:]):
    _help(argv)
  try:
    rest = flags.FLAGS(list(argv))
    if len(rest) > 1:
      raise types.InputError(
        f'Unexpected argument {rest[1]!r}: flags start with --.'
      )
    if 'config' in flags.FLAGS:
      _check_config()
    if 'print_config' in flags.FLAGS and flags.FLAGS.print_config:
      if flags.FLAGS['config'].value is None:
        raise types.InputError('--print_config needs --config.')
      manual.show(manual.config(*config_name(), flags.FLAGS['config'].value))
      raise SystemExit(0)
  except KeyboardInterrupt:
    raise
  except SystemExit as ended:  # As absl does at --helpfull, with 1.
    raise SystemExit(
      0 if manual.asks_for_all_help(argv) else ended.code
    ) from None
  except Exception as error:
    print(f'ERROR: {_explain(error, argv)}', file=sys.stderr)
    raise SystemExit(USAGE) from None
  return rest


def _at_home(argument: str) -> str:
  """An argument in which '~' is the user's home, as no shell makes it."""
  name, equals, value = argument.partition('=')
  if argument.startswith('-'):
    return f'{name}{equals}{os.path.expanduser(value)}'
  return os.path.expanduser(argument)


def _help(argv):
  """Prints the launcher's manual, or that of the recipe that is named."""
  given = _config_argument(argv) if 'config' in flags.FLAGS else None
  try:
    if given is None:
      manual.show(manual.launcher())
    else:
      file, _, preset = given.partition(':')
      _existing_file(file)
      manual.show(manual.recipe(file, preset))
  except Exception as error:  # Whatever a recipe raises.
    print(f'ERROR: --config={given}: {error}', file=sys.stderr)
    raise SystemExit(USAGE) from None
  raise SystemExit(0)


def _check_config():
  flag = flags.FLAGS['config']
  if flag.value is None and not flag.present:
    return
  _existing_file(config_flags.get_config_filename(flag))


def _existing_file(name: str) -> pathlib.Path:
  path = pathlib.Path(name.partition(':')[0])
  if not path.is_file():
    known = [f'configs/{p.name}' for p in recipes.config_files()]
    near = trees.nearest(f'configs/{path.stem}.py', known)
    raise types.InputError(
      f'--config={name}: there is no file {path}.{near} '
      f'The configs are: {", ".join(known)}.'
    )
  return path


def _explain(error: Exception, argv: Sequence[str]) -> str:
  """Finds the flag behind an error of ml_collections."""
  given = _config_argument(argv)
  text = ' '.join(str(error).split()) or type(error).__name__
  missing = re.match(r'flag --(\w+)=None: .* must have a value', text)
  if missing:
    return f'--{missing[1]} is missing: --help says what it takes.'
  if given is None or isinstance(error, types.InputError):
    return text
  try:
    path = _existing_file(given)
    module = recipes.load_config_module(str(path))
    _, _, preset = given.partition(':')
    config = module.get_config(preset) if preset else module.get_config()
  except types.InputError as reason:
    return str(reason)
  except Exception as reason:
    return f'--config={given} cannot be loaded: {reason}'
  for argument in argv[1:]:
    name, _, value = argument.lstrip('-').partition('=')
    if name.startswith('config.'):
      problem = recipes.field_problem(config, name.split('.')[1:], value)
      if problem:
        return f'--{name}: {problem}'
  return text


def _config_argument(argv) -> str | None:
  for i, argument in enumerate(argv):
    name, equals, value = argument.lstrip('-').partition('=')
    if name == 'config' and argument.startswith('-'):
      return value if equals else (argv[i + 1] if i + 1 < len(argv) else None)
  return None
