"""Rules for web text against their papers' words, and near duplicates against all pairs."""

import collections
import itertools
import time

import numpy as np
import pytest

from lm.config import schema
from lm.config.errors import ConfigError
from lm.data import cleaning, near_duplicates, quality
from lm.data.cache import open_corpus
from lm.setup.load import load_config

RNG = np.random.default_rng(0)
WORDS = [
  f"{a}{b}{c}" for a in ("st", "br", "pl", "m") for b in ("ai", "ou", "e") for c in ("nd", "rt")
]


def sentence(n=12):
  return "The " + " ".join(RNG.choice(WORDS, n)) + " of it."


def made(n, letters=6):
  """n words of random letters."""
  return " ".join(
    "".join(RNG.choice(list("abcdefghijklmnopqrstuvwxyz"), letters)) for _ in range(n)
  )


FOURS = [made(4, 10) for _ in range(4)]
PROSE = "\n".join(sentence() for _ in range(8))


@pytest.mark.parametrize(("text", "kept"), [
  (PROSE, True),
  (" ".join(PROSE.split()[:49]), False),  # 50 words or more
  (made(80, 2) + " the of", False),  # of three characters or more
  (made(80, 12) + " the of", False),  # of ten or less
  (made(80).replace(" ", "# ") + " the of", False),
  (made(80).replace(" ", "… ") + " the of", False),
  ("\n".join(f"- {line}" for line in PROSE.split("\n")), False),
  ("\n".join(line + (" ..." if i % 2 else "") for i, line in enumerate(PROSE.split("\n"))), False),
  (f"{made(60)} the of {' '.join(map(str, range(1000, 1030)))}", False),  # 80 % of words have a letter
  (PROSE.replace("The", "A").replace("of", "on"), False),  # no two of the words that prose has
  (PROSE + "\nab cd" * 6, False),  # many lines that were there before
  ("\n".join([*FOURS, made(6), made(6), *FOURS[::-1], *(made(6) for _ in range(6)), "the of"]), False),
  (" ".join(f"plaind stourt {word}" for word in made(40).split()) + " the of", False),  # one pair of words
  (" ".join([(again := made(30)), made(50), again, "the of"]), False),  # a passage of 30 words
])  # fmt: skip
def test_gopher_drops_what_its_table_says(text, kept):
  assert (quality.gopher(text) == text) is kept


def test_repeated_characters_are_counted_once():
  words = ["a", "b", "c", "d", "e", "x", "a", "b", "c", "d", "e", "a", "b", "c", "d", "e", "y"]
  assert quality._repeated(words, 5) == 10 and quality._repeated(words, 6) == 0


def test_c4_keeps_sentences():
  good = ["This line has five words.", "So does this one, it seems!", "And is this another one?"]
  bad = [
    "no full stop here at all", "Four words are few.", "Please enable Javascript to see it.",
    "Our privacy policy says all of it.", "It goes on and on and on...", "w" * 1001 + " is a long word here.",
  ]  # fmt: skip
  mixed = [line for pair in itertools.zip_longest(bad, good, fillvalue="") for line in pair]
  assert quality.c4("\n".join(mixed)) == "\n".join(good)
  assert quality.c4("\n".join(good[:2])) is None  # three sentences
  assert quality.c4("\n".join([*good, "if (x) { return; }"])) is None
  assert quality.c4("\n".join([*good, "Lorem ipsum dolor sit amet."])) is None
  assert quality.c4(
    "\n".join(good).replace("words", "words[12]").replace("seems", "seems[edit]")
  ) == "\n".join(good)


def test_the_schema_names_the_rules():
  assert (
    tuple(quality.QUALITY)
    == schema.rules_of(load_config("configs/smoke.py", {}))["data.quality"].choices
  )


# ---- near duplicates -------------------------------------------------------------------------------


def exact(a, b):
  """Jaccard similarity of runs of five words, by their texts."""
  grams = [
    {tuple(w[i : i + 5]) for i in range(max(len(w) - 4, 1))}
    for w in (t.lower().split() for t in (a, b))
  ]
  return len(grams[0] & grams[1]) / len(grams[0] | grams[1])


@pytest.fixture(scope="module")
def texts():
  """Texts of 60 to 300 words, and copies of them with 0 to 12 words changed, in a random order."""
  found = []
  for _ in range(60):
    words = RNG.choice(WORDS, RNG.integers(60, 300)).tolist()
    found.append(" ".join(words))
    for _ in range(2):
      copy = list(words)
      for at in RNG.integers(0, len(copy), RNG.integers(0, 13)):
        copy[at] = f"new{RNG.integers(10**9)}"
      found.append(" ".join(copy).title())
  return [found[i] for i in RNG.permutation(len(found))] + ["short", "Short", "short one", ""]


@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
def test_what_is_dropped_is_what_all_pairs_say(texts, threshold):
  found = near_duplicates.repeats(texts, texts.__getitem__, threshold).tolist()
  kept, expected, close = [], [], 0
  for text in texts:
    again = any(exact(text, other) >= threshold for other in kept)
    close += again
    expected.append(again)
    kept += [] if again else [text]
  assert found == expected and 0 < close < len(texts)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_find_pairs_at_the_threshold(threshold):
  bands, rows = near_duplicates.bands_of(threshold)
  assert bands * rows <= near_duplicates.MINIMA and 1 - (1 - threshold**rows) ** bands >= 0.99


def test_minima_agree_as_often_as_sets_are_alike(texts):
  pairs = [(near_duplicates.shingles_of(a), near_duplicates.shingles_of(b))
           for a, b in itertools.combinations(texts[:40], 2)]  # fmt: skip
  alike = [(a, b) for a, b in pairs if near_duplicates.similarity(a, b) > 0.1]
  for a, b in alike:
    keys = [near_duplicates._keys(s, near_duplicates.MINIMA, 1) for s in (a, b)]
    share = np.mean(np.array(keys[0]) == np.array(keys[1]))
    assert share == pytest.approx(near_duplicates.similarity(a, b), abs=4 * 0.5 / 128**0.5)
  assert len(alike) > 3


# ---- in a corpus -----------------------------------------------------------------------------------


def corpus(tmp_path, **changes):
  changes = {f"data.{k}": str(v) for k, v in changes.items()}
  changes |= {"data.sources": f"text:{tmp_path}/docs.txt", "data.text_unit": "paragraph"}
  changes |= {"data.cache_dir": str(tmp_path / "cache"), "data.val_fraction": "0.3"}
  return open_corpus(load_config("configs/smoke.py", changes).data, quiet=True)


def test_a_corpus_drops_them_on_both_sides_and_counts(tmp_path):
  paragraphs = ["\n".join(sentence() for _ in range(6)) for _ in range(30)]
  close = [p.replace("The", "A", 1) for p in paragraphs[:10]]
  (tmp_path / "docs.txt").write_text("\n\n".join([*paragraphs, *close, "short"]), encoding="utf-8")
  plain = corpus(tmp_path)
  found = corpus(tmp_path, near_duplicates=0.8)
  assert found.counts["near_duplicate"] == 10 and "near_duplicate" not in plain.counts
  total = lambda c: sum(s.n_docs for s in c.train) + c.val.n_docs
  assert total(plain) == 41 and total(found) == 31 and found.folder != plain.folder
  prose = corpus(tmp_path, quality="gopher")
  assert prose.counts["quality"] == 1 and total(prose) == 40
  assert any("dropped by data.quality" in line for line in prose.notes)


def test_records_that_are_no_documents_refuse_them():
  for spec in (
    "configs/classify.py",
    "configs/instruction.py",
    "configs/transformer.py",
    "configs/squad.py",
  ):
    with pytest.raises(
      ConfigError, match=r"^data.near_duplicates=0.8: .* are no documents of running text"
    ):
      load_config(spec, {"data.near_duplicates": "0.8"})


def test_what_c4_leaves_of_a_page_is_no_shorter_than_asked_for():
  page = "\n".join([*["One two three four five. " * 3] * 3, *["menu"] * 100])
  cfg = load_config(
    "configs/smoke.py", {"data.quality": "c4", "data.min_chars": 400, "data.sources": ["text:x"]}
  ).data
  counts = collections.Counter()
  assert list(cleaning.cleaned([page], cfg, counts)) == []
  assert counts == {"read": 1, "short": 1}


def test_a_page_without_a_full_stop_is_read_in_a_moment():
  """Speech alone: lines that end in quotation marks. The time grew with the square of their length."""
  line = 'he said to her "word word word and so on it goes"'
  began = time.perf_counter()
  assert quality.c4("\n".join([line] * 20_000)) is None
  assert quality.c4("\n".join([line.replace("goes", "goes.")] * 20_000)) is not None
  assert time.perf_counter() - began < 3


def test_texts_without_blanks_are_compared_by_their_characters():
  """A page of Chinese was one word, so that two that differ in a character had nothing in common."""
  rng = np.random.default_rng(0)
  page = "".join(map(chr, rng.integers(0x4E00, 0x9000, 300)))
  other = "".join(map(chr, rng.integers(0x4E00, 0x9000, 300)))
  texts = [page, f"{page[:150]}\u4e00{page[150:]}", other]
  assert list(near_duplicates.repeats(texts, texts.__getitem__, 0.8)) == [False, True, False]
  mixed = near_duplicates.shingles_of("one two three four five six")
  assert len(mixed) == 2
