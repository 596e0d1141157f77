"""Compiled programs kept on disk between processes."""

import jax

from lm.data.sources.digest import local_root


def keep_compiled(cache_dir: str) -> None:
  """Keeps compiled programs in cache_dir/xla, here, so that the next process with one starts at once.

  An XLA cache that the user has set up (JAX_COMPILATION_CACHE_DIR) is left as it is.
  """
  if jax.config.jax_compilation_cache_dir is None:
    folder = local_root(cache_dir) / "xla"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
