"""Low-rank factors of matrices: W [in, out] as A B with A [in, r] and B [r, out]."""

import numpy as np

DAMPING = 1e-4  # of the mean diagonal of X^T X, added to it


def factors(
  w_IO: np.ndarray, rank: int, product_II: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """A [in, rank] and B [rank, out] whose product is nearest to W; both hold the roots of its singular values.

  Without calibration they minimise |W - A B| (Eckart & Young 1936). With X^T X = L L^T they minimise
  |X W - X A B|: A B = L^-T (the best rank-r matrix to L^T W) (Wang et al. 2024, arXiv:2403.07378 §3.1).

  Args:
    product_II: X^T X of calibration inputs X, [tokens, in]; None = none.
  """
  w = w_IO.astype(np.float64)
  lower = None
  if product_II is not None:
    h = product_II.astype(np.float64)
    h[np.diag_indices(len(h))] += DAMPING * np.diag(h).mean()
    lower = np.linalg.cholesky(h)
    w = lower.T @ w
  u, s, v = np.linalg.svd(w, full_matrices=False)
  root = np.sqrt(s[:rank])
  a, b = u[:, :rank] * root, root[:, None] * v[:rank]
  if lower is not None:
    a = np.linalg.solve(lower.T, a)
  return a.astype(np.float32), b.astype(np.float32)
