"""Words with a tag each, such as the names in a sentence, in rows of one sentence (Devlin et al. 2019, §5.3).

    [CLS] pieces of word 0, of word 1, ... [SEP]       the first piece of each word speaks for it

Files of columns (CoNLL's: a word a line, an empty line after a sentence) are read where data.text_field and
data.label_field are numbers of columns, from 0; else records with two lists of equal length. Which sentence
a row holds follows from (seed, step, row).
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm.config.errors import ConfigError, number_of, whole_number
from lm.config.schema import Config
from lm.data import records
from lm.data.labelled import LISTED, sorted_labels
from lm.data.records import Form, Records, RecordStore
from lm.data.sources import facts, parse_spec
from lm.data.sources.paths import find_files
from lm.data.sources.readers import read_file
from lm.data.sources.readers.compression import detect, open_file
from lm.data.sources.readers.fields import Fields, listed, walk
from lm.data.tokenizers import Tokenizer, unknown_id

OUTSIDE = "O"
DOCUMENT = "-DOCSTART-"  # the word of lines that begin a document in CoNLL's files
NAMED = re.compile(r"([BI])-(\S+)")
Batch = dict[str, np.ndarray]


class Sentence(NamedTuple):
  place: str  # "path:line"
  words: tuple[str, ...]
  tags: tuple[str, ...]


# --- reading --------------------------------------------------------------------------------------


def read(specs: Sequence[str], cfg: Config, key: str, counts: Counter[str]) -> Iterator[Sentence]:
  """The sentences of sources, each "text:GLOB" or "facts:N"; those without words are passed over.

  Raises:
    ConfigError: with file and line: a word without a tag, lists of unequal length, what is no list.
  """
  for spec in specs:
    for sentence in _of_source(spec, cfg, key):
      if sentence.words:
        _check_scheme(sentence, cfg)
        counts.update(sentences=1, words=len(sentence.words))
        yield sentence


def _check_scheme(sentence: Sentence, cfg: Config) -> None:
  for tag in sentence.tags:
    if cfg.objective.scheme == "bio" and tag != OUTSIDE and not NAMED.fullmatch(tag):
      raise ConfigError(
        f"objective.scheme=bio: {sentence.place} has the tag {tag!r}, which is not O, B-TYPE or I-TYPE; "
        "use plain"
      )


def _of_source(spec: str, cfg: Config, key: str) -> Iterator[Sentence]:
  kind, name = parse_spec(spec, key)
  where = f"{key}={spec}"
  if kind == "facts":
    for number, fact in enumerate(facts.read(name, where)):
      yield Sentence(f"fact {number}", fact.words, fact.tags)
    return
  if kind != "text":
    raise ConfigError(f"{where}: has no tags; use text:FILES")
  columns = _columns(cfg)
  for path in find_files(name, where):
    yield from _of_columns(path, columns, where) if columns else _of_records(path, cfg, where)


def _columns(cfg: Config) -> tuple[int, int] | None:
  """The columns of word and tag; None where fields are names."""
  names = (cfg.data.text_field, cfg.data.label_field or "")
  word, tag = map(whole_number, names)
  return None if word is None or tag is None else (word, tag)


def _of_columns(path: str, columns: tuple[int, int], where: str) -> Iterator[Sentence]:
  """Sentences of a file with a word a line, columns apart by tabs, or by blanks where there is no tab."""
  begun, words, tags = 1, [], []
  with open_file(path, detect(path, where), where) as file:
    for number, line in enumerate(file, 1):
      try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
      except UnicodeDecodeError:
        raise ConfigError(f"{where}: {path}:{number} is not UTF-8; convert the file") from None
      fields = [field.strip() for field in text.split("\t")] if "\t" in text else text.split()
      if not text.strip() or fields[0] == DOCUMENT:
        yield Sentence(f"{path}:{begun}", tuple(words), tuple(tags))
        begun, words, tags = number + 1, [], []
        continue
      for column, what, key in zip(columns, ("word", "tag"), ("text", "label"), strict=True):
        if column >= len(fields) or not fields[column]:
          raise ConfigError(
            f"data.{key}_field={column}: {path}:{number} has no {what} there but "
            f"{number_of(len(fields), 'column')}; "
            "mend the line, or name another column (from 0)"
          )
      words.append(fields[columns[0]])
      tags.append(fields[columns[1]])
  yield Sentence(f"{path}:{begun}", tuple(words), tuple(tags))


class _Lists(Fields):
  """Two lists of a record: words and tags."""

  def pick(self, record: Mapping, place: str, where: str) -> Any:
    self.n_records, self.found = self.n_records + 1, True
    found = []
    for name, key in self.keys.items():
      values = walk(record, self.paths[name], name)
      if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        has = listed([str(each) for each in record])
        raise ConfigError(f"{key}={name}: {place} has no list there; it has: {has}")
      for i, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
          raise ConfigError(f"{key}={name}: {place} has {value!r} as member {i}; give a text")
      found.append(tuple(str(value).strip() for value in values))
    words, tags = found
    if len(words) != len(tags):
      (_, _), (name, key) = self.keys.items()
      raise ConfigError(
        f"{key}={name}: {place} has {number_of(len(words), 'word')} and {len(tags)} tags; give "
        "as many of each"
      )
    return Sentence(place, words, tags)


def _of_records(path: str, cfg: Config, where: str) -> Iterator[Sentence]:
  data = cfg.data
  fields = _Lists({data.text_field: "data.text_field", str(data.label_field): "data.label_field"})
  for found in read_file(path, data, fields, where):
    if not isinstance(found, Sentence):
      raise ConfigError(
        f"{where}: {path} is plain text; give JSON lines or parquet, or columns of a CoNLL file by number "
        "(data.text_field=0)"
      )
    yield found


def learn(train: Sequence[Sentence], val: Sequence[Sentence], cfg: Config) -> dict[str, Any]:
  """{"labels": the tags of both sides}.

  By objective.scheme: bio: O and, of every type in the order of letters, B-TYPE and I-TYPE, used or not, so
  that tag 0 is O, odd ones begin a name and even ones go on with it; plain: the tags as they are.
  """
  tags = {tag for sentence in (*train, *val) for tag in sentence.tags}
  return {"labels": sorted_labels(tags) if cfg.objective.scheme == "plain" else bio_tags(tags)}


def bio_tags(tags: Iterable[str]) -> list[str]:
  """O and, of every type that tags name, in the order of letters, B-TYPE and I-TYPE.

  >>> bio_tags(["I-PER", "O", "B-LOC"])
  ['O', 'B-LOC', 'I-LOC', 'B-PER', 'I-PER']
  """
  types = sorted({tag[2:] for tag in tags if tag != OUTSIDE})
  return [OUTSIDE, *(f"{part}-{name}" for name in types for part in "BI")]


def arrays(
  sentences: Sequence[Sentence], tokenizer: Tokenizer, learned: dict, cfg: Config, key: str
) -> dict[str, np.ndarray]:
  """tokens and offsets of sentences; firsts and labels of words, and offsets of these.

  Raises:
    ConfigError: a tag that training lacks; a word that the tokenizer makes nothing of.
  """
  number = {tag: i for i, tag in enumerate(learned["labels"])}
  for sentence in sentences:
    for tag in sentence.tags:
      if tag not in number:
        known = listed(learned["labels"])
        raise ConfigError(
          f"data.label_field={cfg.data.label_field}: {sentence.place} has the tag {tag!r}, which no "
          f"training word has (they have {known}); mend it, or train on such words too"
        )
  pieces = _Pieces(tokenizer, cfg.data.tokenizer, sentences)
  tokens, firsts = [], []
  for sentence in sentences:
    mine = [pieces.of(word, i, sentence.place) for i, word in enumerate(sentence.words)]
    begins = np.cumsum([0, *(len(ids) for ids, _ in mine)])[:-1]
    firsts.append([at + skip for at, (_, skip) in zip(begins, mine, strict=True)])
    tokens.append([i for ids, _ in mine for i in ids])
  flat, offsets = records.joined(tokens, "<i4")
  flat_firsts, word_offsets = records.joined(firsts, "<i4")
  labels, _ = records.joined([[number[t] for t in s.tags] for s in sentences], "<i4")
  raw = [" ".join(sentence.words).encode() for sentence in sentences]
  text, ends = records.joined([np.frombuffer(each, np.uint8) for each in raw], "u1")
  return {
    "tokens": flat, "offsets": offsets, "firsts": flat_firsts, "word_offsets": word_offsets,
    "labels": labels, "text": text, "ends": ends,
  }  # fmt: skip


class _Pieces:
  """Ids of words, each as it stands after a blank (the first of a sentence: without), made once a word."""

  def __init__(self, tokenizer: Tokenizer, name: str, sentences: Sequence[Sentence]):
    self.name, self.unknown = name, unknown_id(tokenizer)
    blank = tokenizer.encode(" ")
    texts = sorted({f"{' ' * bool(i)}{word}" for s in sentences for i, word in enumerate(s.words)})
    self.found: dict[str, tuple[list[int], int]] = {}
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
      ids = ids.tolist()
      spelled = bool(blank) and text[0] == " " and ids[: len(blank)] == blank  # blank by itself
      self.found[text] = (ids, len(blank) if spelled and len(ids) > len(blank) else 0)

  def of(self, word: str, i: int, place: str) -> tuple[list[int], int]:
    """(ids, which of them speaks for the word)."""
    ids, skip = self.found[f"{' ' * bool(i)}{word}"]
    if ids:
      return ids, skip
    if self.unknown is None:
      raise ConfigError(
        f"data.tokenizer={self.name}: makes nothing of the word {word!r} of {place} and has no unknown "
        "token; take the word out"
      )
    return [self.unknown], 0


def lengths(store: RecordStore) -> np.ndarray:
  """int64 [n]: tokens of each sentence's row, special ones included."""
  return np.diff(store["offsets"]) + 2


def _settings(cfg: Config) -> list:
  data = cfg.data
  return [data.text_field, data.label_field, data.text_format, cfg.objective.scheme]


FORM = Form(
  name="tagged",
  version=1,
  read=read,
  settings=_settings,
  group=lambda sentence: "\0".join(sentence.words),
  texts=lambda sentences: (" ".join(sentence.words) for sentence in sentences),
  learn=learn,
  arrays=arrays,
  sizes=lambda store, cfg: (
    len(store["offsets"]) - 1,
    int(lengths(store).sum()),
    len(store["text"]),
  ),
)


def open_tagged(cfg: Config) -> Records:
  """The sentences of a config. Raises: ConfigError for other tags than objective.classes says."""
  data = records.open_records(cfg, FORM)
  labels = data.learned["labels"]
  if len(labels) != cfg.objective.classes:
    shown = ", ".join(labels[:LISTED]) + (", ..." if len(labels) > LISTED else "")
    raise ConfigError(
      f"objective.classes={cfg.objective.classes}: there are {len(labels)} tags ({shown}); use {len(labels)}"
    )
  return data


# --- batches --------------------------------------------------------------------------------------


def most_words(cfg: Config) -> int:
  """W: words of a row, at most."""
  return cfg.model.seq_len - 2


class _Rows:
  """Sentences of a store as arrays."""

  def __init__(self, store: RecordStore, tokenizer: Tokenizer, cfg: Config):
    self.store, self.tokenizer, self.cfg = store, tokenizer, cfg

  def kept(self, i: int) -> int:
    """How many words of sentence i have their first piece within a row."""
    begin, end = self.store["word_offsets"][i : i + 2]
    return int((self.store["firsts"][begin:end] < most_words(self.cfg)).sum())

  def batch(self, chosen: Sequence[int]) -> Batch:
    """tokens and segments (1 = real) [B, L]; places, label [B, W] of words, and weights, 0 past the last.

    A sentence that is -1 is no sentence.
    """
    n, length, room = len(chosen), self.cfg.model.seq_len, most_words(self.cfg)
    tokens_BL, segments_BL = (np.zeros((n, length), np.int32) for _ in range(2))
    places_BW, label_BW = (np.zeros((n, room), np.int32) for _ in range(2))
    weights_BW = np.zeros((n, room), np.float32)
    tokens_BL[:, 0] = self.tokenizer.start_id
    for b, i in enumerate(chosen):
      if i < 0:
        continue
      ids = self.store["tokens"][self.store["offsets"][i] : self.store["offsets"][i + 1]][:room]
      tokens_BL[b, 1 : 1 + len(ids)] = ids
      tokens_BL[b, 1 + len(ids)] = self.tokenizer.eot_id
      segments_BL[b, : 2 + len(ids)] = 1
      words, begin = self.kept(i), self.store["word_offsets"][i]
      places_BW[b, :words] = 1 + self.store["firsts"][begin : begin + words]
      label_BW[b, :words] = self.store["labels"][begin : begin + words]
      weights_BW[b, :words] = 1.0
    return {
      "tokens": tokens_BL, "segments": segments_BL, "places": places_BW, "label": label_BW,
      "weights": weights_BW,
    }  # fmt: skip


class TaggedBatches:
  """Training batches: `at(step)` depends on the config, its seed and the step alone."""

  def __init__(self, data: Records, cfg: Config):
    assert cfg.data.seed is not None  # resolved
    self.cfg, self.seed, self.batch_size = cfg, cfg.data.seed, cfg.train.batch_size
    self.rows, self.n = _Rows(data.train, data.tokenizer, cfg), len(data.train["offsets"]) - 1

  def at(self, step: int, rows: slice | None = None) -> Batch:
    """Batch number `step`, or only its `rows`."""
    reshuffle = self.cfg.data.reshuffle
    chosen = records.drawn(self.seed, step, self.batch_size, self.n, reshuffle, rows)
    return self.rows.batch(chosen.tolist())


class TaggedSet(NamedTuple):
  """A store to be evaluated on, and what reads it."""

  store: RecordStore
  tokenizer: Tokenizer

  @property
  def fingerprint(self) -> str:
    return self.store.fingerprint


class TaggedEval:
  """A store's first sentences, up to `max_tokens` tokens, in their order."""

  def __init__(self, each: TaggedSet, cfg: Config, max_tokens: int | None, stride: int | None):
    if stride is not None:
      raise ConfigError(f"stride={stride}: tagged sentences are read whole; leave it out")
    assert cfg.eval.batch_size is not None  # resolved
    check_lengths(each.store, cfg)
    self.batch_size, self.rows = cfg.eval.batch_size, _Rows(each.store, each.tokenizer, cfg)
    sums = np.cumsum(np.minimum(lengths(each.store), cfg.model.seq_len))
    self.n = (
      len(sums) if max_tokens is None else int(np.searchsorted(sums, max_tokens, side="right"))
    )
    if not self.n:
      raise ConfigError(
        f"eval.tokens={max_tokens}: the first sentence of {each.store.name} has "
        f"{number_of(sums[0], 'token')}; use at "
        "least as many, or None for all"
      )
    words = int(each.store["word_offsets"][self.n])
    cut = words - sum(self.rows.kept(i) for i in range(self.n))
    self.facts = {"tokens": int(sums[self.n - 1]), "sentences": self.n, "words": words}
    self.facts |= {"words_cut_away": cut} if cut else {}

  def __len__(self) -> int:
    return -(-self.n // self.batch_size)

  def at(self, number: int, rows: slice | None = None) -> Batch:
    """Batch `number`, or only its `rows`; rows past the last sentence weigh 0."""
    index = number * self.batch_size + np.arange(self.batch_size)[rows or slice(None)]
    return self.rows.batch([i if i < self.n else -1 for i in index.tolist()])


def check_lengths(store: RecordStore, cfg: Config) -> None:
  """ConfigError for a sentence that is longer than the model, unless texts may be cut."""
  sizes = lengths(store)
  n, longest = int((sizes > cfg.model.seq_len).sum()), int(sizes.argmax())
  if n and not cfg.data.truncate:
    begin, end = store["ends"][longest : longest + 2]
    text = store["text"][begin:end].tobytes().decode()
    raise ConfigError(
      f"model.seq_len={cfg.model.seq_len}: {n} of {len(sizes)} sentences of {store.name} are longer, up to "
      f"{number_of(sizes[longest], 'token')} ({text[:40]!r}...); raise it, or "
      "cut them with data.truncate=True (of lm.evaluate: --truncate)"
    )


def mean_tagged(data: Records, cfg: Config) -> float:
  """Tokens that a row holds, special ones included."""
  check_lengths(data.train, cfg)
  return float(np.minimum(lengths(data.train), cfg.model.seq_len).mean())


def check_tagged(cfg: Config) -> None:
  """ConfigError where fields are not named, or the data section says what is not for tagged words."""
  data = cfg.data
  if data.label_field is None or data.label_field == data.text_field:
    raise ConfigError(
      f"data.label_field={data.label_field}: objective.name={cfg.objective.name} needs tags beside "
      f"data.text_field={data.text_field}; name the field or column that holds them"
    )
  if (whole_number(data.text_field) is None) != (whole_number(data.label_field) is None):
    raise ConfigError(
      f"data.label_field={data.label_field}: is to be a number of a column where "
      f"data.text_field={data.text_field} is one, and a name where it is a name; name both alike"
    )
  records.check_plain(cfg, "tagged words")
  if cfg.model.seq_len < 3:
    raise ConfigError(
      f"model.seq_len={cfg.model.seq_len}: must hold 2 special tokens and a word; use 3 or more"
    )
