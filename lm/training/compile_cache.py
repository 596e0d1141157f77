"""Compiled programs kept on disk between processes."""

import pathlib

import jax


def keep_compiled(cache_dir: str) -> None:
  """Keeps compiled programs in cache_dir/xla, so that the next process with the same one starts at once.

  An XLA cache that the user has set up (JAX_COMPILATION_CACHE_DIR) is left as it is.
  """
  if jax.config.jax_compilation_cache_dir is None:
    folder = pathlib.Path(cache_dir).expanduser() / "xla"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
