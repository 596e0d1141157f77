"""Rules by which web text is kept or dropped, from the papers that made corpora by them.

`gopher` (Rae et al. 2021, arXiv:2112.11446, §A.1.1 and table A1) keeps or drops whole documents; words are
what blanks separate. `c4` (Raffel et al. 2020, arXiv:1910.10683, §2.2) takes lines out and drops what is left
if it is little. Of C4's steps two are not here: its list of bad words, and the guess of the language.
"""

import re
from collections import Counter
from collections.abc import Callable

REQUIRED = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
BULLETS = ("•", "‣", "●", "◦", "▪", "■", "-", "*")
ELLIPSES = ("...", "…")
# Largest fractions of a document (table A1): of characters in the n-gram that repeats most, by n, and of
# those in all n-grams that were there before.
TOP = {2: 0.20, 3: 0.18, 4: 0.16}
REPEATED = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
# Borders of lines and of paragraphs; largest share of those that were there before, and of their characters.
PARTS = ((r"\n+", 0.30, 0.20), (r"\n{2,}", 0.30, 0.20))

_ENDS = (".", "!", "?", '"', "”", "'")
_POLICY = (
  "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies",
)  # fmt: skip
_CITATION = re.compile(r"\[(?:\d*|edit|citation needed)\]")
_SENTENCE_END = re.compile(r"[.!?]+[\"”')\]]*(?=\s|$)")
LONGEST_WORD = 1000  # characters, of C4


def gopher(text: str) -> str | None:
  """The text, or None where a rule drops it."""
  words = text.split()
  return None if _unlike_prose(text, words) or _repetitive(text, words) else text


def _unlike_prose(text: str, words: list[str]) -> bool:
  n = len(words)
  if not 50 <= n <= 100_000 or not 3 <= sum(map(len, words)) / n <= 10:
    return True
  if max(text.count("#"), sum(map(text.count, ELLIPSES))) / n > 0.1:
    return True
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  if sum(line.startswith(BULLETS) for line in lines) > 0.9 * len(lines):
    return True
  if sum(line.endswith(ELLIPSES) for line in lines) > 0.3 * len(lines):
    return True
  if sum(any(map(str.isalpha, word)) for word in words) < 0.8 * n:
    return True
  return len(REQUIRED.intersection(map(str.lower, words))) < 2


def _repetitive(text: str, words: list[str]) -> bool:
  for border, most, most_characters in PARTS:
    parts = [part for part in re.split(border, text.strip()) if part.strip()]
    again = [part for part, count in Counter(parts).items() for _ in range(count - 1)]
    if len(again) > most * len(parts) or sum(map(len, again)) > most_characters * len(text):
      return True
  for n, most in TOP.items():
    grams = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    if grams:
      gram, count = max(grams.items(), key=lambda item: (item[1], sum(map(len, item[0]))))
      if count > 1 and count * len(" ".join(gram)) > most * len(text):
        return True
  return any(_repeated(words, n) > most * len(text) for n, most in REPEATED.items())


def _repeated(words: list[str], n: int) -> int:
  """Characters of words in n-grams that stood before, each counted once."""
  seen: set[tuple[str, ...]] = set()
  total, i = 0, 0
  while i + n <= len(words):
    gram = tuple(words[i : i + n])
    if gram in seen:
      total += sum(map(len, gram))
      i += n
    else:
      seen.add(gram)
      i += 1
  return total


def c4(text: str) -> str | None:
  """The lines that end as sentences do and have five words or more, or None where a rule drops the page."""
  if "{" in text or "lorem ipsum" in text.lower():
    return None
  kept = []
  for line in text.splitlines():
    line = _CITATION.sub("", line.strip())
    words = line.split()
    if not line.endswith(_ENDS) or line.endswith(ELLIPSES) or len(words) < 5:
      continue
    lowered = line.lower()
    if "javascript" in lowered or any(policy in lowered for policy in _POLICY):
      continue
    if max(map(len, words)) <= LONGEST_WORD:
      kept.append(line)
  found = "\n".join(kept)
  return found if len(_SENTENCE_END.findall(found)) >= 3 else None


QUALITY: dict[str, Callable[[str], str | None]] = {"gopher": gopher, "c4": c4}
