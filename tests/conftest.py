"""Devices and compiled programs of all tests, set before JAX starts."""

import gc
import hashlib
import os
import pathlib
import platform

import compiling

os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # `make test-gpu` says gpu.
# Compilation is most of the time of a small test, and optimization most of
# that. The demo and the notebooks run optimized programs.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
# Nobody reads where in a source file an operation of a compiled program began.
os.environ.setdefault('JAX_TRACEBACK_IN_LOCATIONS_LIMIT', '0')
# Threads of NumPy's products spin for a moment wherever NumPy is imported.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
# A bias of the wrong shape must not pass as one of another rank.
os.environ['JAX_NUMPY_RANK_PROMOTION'] = 'raise'
_flags = os.environ.get('XLA_FLAGS', '')
if 'xla_force_host_platform_device_count' not in _flags:
  os.environ['XLA_FLAGS'] = f'{_flags} {compiling.flags(devices=4)}'.strip()

import drawing
import jax
import jaxlib
import lowering
import marks
import pytest
import spreading
import summary

_ROOT = pathlib.Path(__file__).resolve().parents[1]

# Several virtual devices on few cores deadlock when steps are queued.
jax.config.update('jax_cpu_enable_async_dispatch', False)


def _processor() -> str:
  """What programs are compiled for: another processor may lack instructions."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text('utf-8').splitlines()
  except OSError:
    return platform.machine()
  told = {x for x in lines if x.startswith(('model name', 'flags', 'Features'))}
  return hashlib.sha256('\n'.join(sorted(told)).encode()).hexdigest()[:16]


# Programs of earlier test runs, by far most of the time of a second one.
if not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
  _cache = pathlib.Path(
    os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  )
  # In the environment, for the processes that tests start.
  os.environ['JAX_COMPILATION_CACHE_DIR'] = str(
    _cache / 'repjax-tests' / f'{jaxlib.__version__}-{_processor()}'
  )
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'
jax.config.update(
  'jax_compilation_cache_dir', os.environ['JAX_COMPILATION_CACHE_DIR']
)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
_forget_context = lowering.share_contexts()
drawing.draw_once()


def pytest_configure(config):
  spreading.keep_to_own_cores(os.environ)
  config.pluginmanager.register(summary.Summary(config))


def pytest_ignore_collect(collection_path, config):
  """Peers' packages take seconds to import, also where none is asked for."""
  if (
    collection_path.name == 'parity' and 'not parity' in config.option.markexpr
  ):
    return True
  return None


@pytest.hookimpl(tryfirst=True)  # Before pytest selects by marks.
def pytest_collection_modifyitems(items):
  marks.mark_dear(items)
  spreading.put_long_files_first(items)


def pytest_collection_finish():
  """Lets Python look seldom for garbage in cycles.

  At its own rate it looks through all that was imported again and again, an
  eighth of all CPU.
  """
  gc.collect()
  gc.freeze()
  gc.set_threshold(20_000, 20, 100)


def pytest_runtest_setup(item):
  reason = marks.reason_to_skip(
    item, devices=jax.local_device_count(), backend=jax.default_backend()
  )
  if reason:
    pytest.skip(reason)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
  if config.getvalue('dist') != 'loadfile':
    return None
  config.option.loadscopereorder = False  # It would be by number alone.
  return spreading.PerFileOrRecipe(config, log)


@pytest.fixture(scope='session')
def real_data():
  """Folder of prepared standard sets."""
  folder = (
    _ROOT / os.environ.get('REPJAX_TEST_DATA', '../shared/tfds')
  ).resolve()
  if not (folder / 'mnist').exists():
    pytest.skip(f'no prepared mnist in {folder}; set REPJAX_TEST_DATA')
  return str(folder)


# Linux lets a process have 65,530 mappings, of which a compiled program takes
# several; a worker that runs out of them dies. Fewer, since 20,000 of programs
# that were compiled in one part took 6 GB.
_MAPS, _MOST = pathlib.Path('/proc/self/maps'), 20_000


@pytest.fixture(autouse=True, scope='module')
def _few_programs():
  """Forgets compiled programs, which the persistent cache still has."""
  yield
  _forget_context()
  if _MAPS.exists() and _MAPS.read_bytes().count(b'\n') > _MOST:
    jax.clear_caches()
    gc.collect()
