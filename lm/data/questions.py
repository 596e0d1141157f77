"""Questions about contexts that hold the answers, as in SQuAD 1.1 (Rajpurkar et al. 2016, arXiv:1606.05250).

    [CLS] question [SEP] window of the context [SEP]         (Devlin et al. 2019, arXiv:1810.04805, §4.2)

A context that does not fit beside its question is read in windows that begin objective.window_stride tokens
after each other. A training window without the whole answer points to [CLS], place 0, as in BERT's released
code. Which window a row holds follows from (seed, step, row). Sources are files of SQuAD's JSON, `text:GLOB`,
and `facts:N`; questions of an article are held out together.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lm.config.errors import ConfigError, is_unicode, number_of
from lm.config.schema import Config
from lm.data import records
from lm.data.records import Form, Records, RecordStore
from lm.data.sources import facts, files, parse_spec
from lm.data.sources.readers.compression import detect, open_file
from lm.data.tokenizers import Tokenizer

ANSWERS = 6  # of a question, that evaluation in a run compares with
MAY_END, MAY_BEGIN = 1, 2  # an answer here; what may begin one may end it too
SHAPE = '{"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "answers"}]}]}]}'
Batch = dict[str, np.ndarray]


class Question(NamedTuple):
  place: str  # "path, question ID"
  article: str
  id: str
  text: str
  context: str
  answers: tuple[
    tuple[str, int], ...
  ]  # (text, the character of the context that it begins at), one or more


# --- reading --------------------------------------------------------------------------------------


def read(specs: Sequence[str], cfg: Config, key: str, counts: Counter[str]) -> Iterator[Question]:
  """The questions of sources. Raises: ConfigError, as of `read_squad`, and for sources of other kinds."""
  for spec in specs:
    for question in _of_source(spec, key):
      counts["questions"] += 1
      yield question


def _of_source(spec: str, key: str) -> Iterator[Question]:
  kind, name = parse_spec(spec, key)
  where = f"{key}={spec}"
  if kind == "facts":
    for number, fact in enumerate(facts.read(name, where)):
      for asked, answer in fact.answers.items():
        place = f"fact {number}"
        yield Question(place, fact.text, f"{number} {asked}", asked, fact.text, (answer,))
  else:
    for path in files(spec, "has no questions; use text:FILE of SQuAD's JSON", key):
      yield from read_squad(path, where)


def read_squad(path: str, where: str) -> list[Question]:
  """The questions of a file in the schema of SQuAD 1.1.

  Raises:
    ConfigError: no such JSON; a question without an answer, as SQuAD 2.0 has; an answer that does not stand
      where answer_start says.
  """
  try:
    with open_file(path, detect(path, where), where) as file:
      content = json.loads(file.read().decode("utf-8-sig"))
  except OSError as error:
    raise ConfigError(
      f"{where}: {path} cannot be read ({error.strerror or error}); check it"
    ) from None
  except (ValueError, RecursionError):
    raise ConfigError(f"{where}: {path} is no JSON in UTF-8; give a file of {SHAPE}") from None
  found = []
  try:
    for i, article in enumerate(content["data"]):
      title = str(article["title"]) if article.get("title") else f"{path} article {i}"
      for paragraph in article["paragraphs"]:
        for asked in paragraph["qas"]:
          answers = tuple((a["text"], a["answer_start"]) for a in asked["answers"])
          texts = (asked["question"], paragraph["context"])
          place = f"{path}, question {asked['id']}"
          found.append(Question(place, title, str(asked["id"]), *texts, answers))
  except (KeyError, TypeError, AttributeError) as error:
    raise ConfigError(
      f"{where}: {path} is not in the schema of SQuAD 1.1 ({type(error).__name__}: {error}); give "
      f"{SHAPE}"
    ) from None
  if not found:
    raise ConfigError(f"{where}: {path} holds no question; check the file")
  for question in found:
    _check(question, where)
  return found


def _check(question: Question, where: str) -> None:
  """ConfigError for what is no text, and for answers that do not stand in the context."""
  if not all(isinstance(text, str) and text.strip() for text in (question.text, question.context)):
    raise ConfigError(
      f"{where}: {question.place} needs a question and a context, both texts; mend it"
    )
  if not is_unicode(question.text + question.context):
    raise ConfigError(f"{where}: {question.place} has a lone surrogate, no character; mend it")
  if not question.answers:
    raise ConfigError(
      f"{where}: {question.place} has no answer, as some of SQuAD 2.0 have; take such questions out"
    )
  for text, start in question.answers:
    is_text = isinstance(text, str) and isinstance(start, int) and text.strip() and start >= 0
    if not is_text or question.context[start : start + len(text)] != text:
      raise ConfigError(
        f"{where}: {question.place} has the answer {text!r:.60}, which does not stand at character {start} "
        "of its context; mend answer_start"
      )


# --- tokens ---------------------------------------------------------------------------------------


class Context(NamedTuple):
  """A tokenised context: ids [n], and the characters of the text that each stands for, [n, 2]."""

  text: str
  ids: np.ndarray
  spans: np.ndarray

  def tokens_of(self, answer: str, start: int) -> tuple[int, int] | None:
    """(first, last) token that shares a character with an answer; None where none does."""
    begin = int(np.searchsorted(self.spans[:, 1], start, side="right"))
    end = int(np.searchsorted(self.spans[:, 0], start + len(answer), side="left"))
    return (begin, end - 1) if begin < end else None

  def between(self, first: int, last: int) -> str:
    """The characters of the context from one token to another, whitespace between them included."""
    return self.text[int(self.spans[first, 0]) : int(self.spans[last, 1])]


def tokenise(text: str, tokenizer: Tokenizer) -> Context:
  """A context in tokens whose spans hold no blanks at their ends; tokens that are blank stay."""
  ids, spans = tokenizer.encode_with_spans(text)
  for i, (begin, end) in enumerate(spans.tolist()):
    piece = text[begin:end]
    if piece.strip() and piece != piece.strip():
      spans[i] = (
        begin + len(piece) - len(piece.lstrip()),
        end - (len(piece) - len(piece.rstrip())),
      )
  return Context(text, ids, spans)


def arrays(
  questions: Sequence[Question], tokenizer: Tokenizer, learned: dict, cfg: Config, key: str
) -> dict[str, np.ndarray]:
  """Tokens of contexts and questions with their offsets, and of each question its context and answers.

  firsts, lasts [n, ANSWERS]: tokens of the context at both ends of each answer, -1 past the last one.

  Raises:
    ConfigError: an answer that no token of its context shows.
  """
  numbers = {text: i for i, text in enumerate(dict.fromkeys(q.context for q in questions))}
  contexts = [tokenise(text, tokenizer) for text in numbers]
  ends = np.full((2, len(questions), ANSWERS), -1, np.int32)
  for i, question in enumerate(questions):
    context = contexts[numbers[question.context]]
    for j, (text, start) in enumerate(question.answers[:ANSWERS]):
      found = context.tokens_of(text, start)
      if found is None:
        raise ConfigError(
          f"{key}: {question.place} has the answer {text!r:.60}, which data.tokenizer={tokenizer.name} makes "
          "nothing of; take the question out"
        )
      ends[:, i, j] = found
  tokens, offsets = records.joined([context.ids for context in contexts], "<i4")
  asked = tokenizer.encode_batch([question.text for question in questions])
  question_tokens, question_offsets = records.joined(asked, "<i4")
  raw = [np.frombuffer(question.text.encode(), np.uint8) for question in questions]
  text, text_ends = records.joined(raw, "u1")
  return {
    "tokens": tokens, "offsets": offsets,
    "question_tokens": question_tokens, "question_offsets": question_offsets,
    "context": np.array([numbers[q.context] for q in questions], "<i4"),
    "firsts": ends[0], "lasts": ends[1], "text": text, "ends": text_ends,
    "bytes": np.array([sum(len(text.encode()) for text in numbers) + len(text)], "<i8"),
  }  # fmt: skip


class Windows(NamedTuple):
  """Windows of a store's questions, in their order, each int [w]."""

  question: np.ndarray
  start: np.ndarray  # the token of the context that it begins at
  length: np.ndarray
  rows: np.ndarray  # tokens of the whole row

  @property
  def n(self) -> int:
    return len(self.question)


def cut_windows(store: RecordStore, cfg: Config) -> Windows:
  """The windows of every question: whole contexts where they fit."""
  asked = np.minimum(np.diff(store["question_offsets"]), cfg.objective.question_tokens)
  sizes = np.diff(store["offsets"])[store["context"]]
  found = []
  for i, (n_asked, size) in enumerate(zip(asked.tolist(), sizes.tolist(), strict=True)):
    room, start = cfg.model.seq_len - 3 - n_asked, 0
    while True:
      length = min(room, size - start)
      found.append((i, start, length, n_asked + length + 3))
      if start + length >= size:
        break
      start += min(length, cfg.objective.window_stride)
  return Windows(*np.array(found, np.int64).T)


def best_places(windows: Windows, chosen: slice) -> list[np.ndarray]:
  """Of each window of one question: whether a token has more of its context there than in any other window.

  The context of a token is the smaller of how many tokens stand before and after it in the window, and a
  hundredth of the window's length (BERT's code).
  """
  starts, lengths = windows.start[chosen], windows.length[chosen]
  size = int((starts + lengths).max())
  score_WT = np.full((len(starts), size), -1.0)
  for w, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
    at = np.arange(length)
    score_WT[w, start : start + length] = np.minimum(at, length - 1 - at) + 0.01 * length
  best_T = score_WT.argmax(axis=0)  # the first of equal ones
  return [
    best_T[start : start + length] == w
    for w, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True))
  ]


FORM = Form(
  name="questions",
  version=1,
  read=read,
  settings=lambda cfg: [],
  group=lambda question: question.article,
  texts=lambda questions: dict.fromkeys(text for q in questions for text in (q.context, q.text)),
  learn=lambda train, val, cfg: {},
  arrays=arrays,
  sizes=lambda store, cfg: (
    len(store["context"]),
    int(cut_windows(store, cfg).rows.sum()),
    int(store["bytes"][0]),
  ),
)


def open_questions(cfg: Config) -> Records:
  """The questions of a config."""
  return records.open_records(cfg, FORM)


# --- batches --------------------------------------------------------------------------------------


def has_types(cfg: Config) -> bool:
  """Whether batches say which of question and context a token is of."""
  return getattr(cfg.model, "types", 1) > 1


class Rows:
  """Windows of a store as arrays."""

  def __init__(self, store: RecordStore, tokenizer: Tokenizer, cfg: Config):
    self.store, self.tokenizer, self.cfg = store, tokenizer, cfg
    self.windows = cut_windows(store, cfg)

  def asked(self, i: int) -> np.ndarray:
    """The tokens of question i, as many as are read."""
    begin, end = self.store["question_offsets"][i : i + 2]
    return self.store["question_tokens"][begin:end][: self.cfg.objective.question_tokens]

  def batch(self, chosen: Sequence[int]) -> Batch:
    """tokens, segments (1 = real) and types (0 and 1) [B, L]; first and last [B], places of the first answer,
    0 where the window does not hold it whole; weights float32 [B], 0 for a window that is -1."""
    n, length = len(chosen), self.cfg.model.seq_len
    tokens_BL, segments_BL, types_BL = (np.zeros((n, length), np.int32) for _ in range(3))
    first_B, last_B = np.zeros(n, np.int32), np.zeros(n, np.int32)
    tokens_BL[:, 0], eot = self.tokenizer.start_id, self.tokenizer.eot_id
    for b, w in enumerate(chosen):
      if w < 0:
        continue
      i, start, size = (int(a[w]) for a in self.windows[:3])
      asked, at = self.asked(i), int(self.store["offsets"][self.store["context"][i]])
      begin = len(asked) + 2
      tokens_BL[b, 1 : begin - 1], tokens_BL[b, begin - 1] = asked, eot
      tokens_BL[b, begin : begin + size] = self.store["tokens"][at + start : at + start + size]
      tokens_BL[b, begin + size] = eot
      segments_BL[b, : begin + size + 1], types_BL[b, begin : begin + size + 1] = 1, 1
      first, last = int(self.store["firsts"][i, 0]), int(self.store["lasts"][i, 0])
      if start <= first and last < start + size:
        first_B[b], last_B[b] = begin + first - start, begin + last - start
    batch = {"tokens": tokens_BL, "segments": segments_BL, "first": first_B, "last": last_B}
    batch["weights"] = (np.asarray(chosen) >= 0).astype(np.float32)
    return batch | {"types": types_BL} if has_types(self.cfg) else batch


class QuestionBatches:
  """Training batches of windows: `at(step)` depends on the config, its seed and the step alone."""

  def __init__(self, data: Records, cfg: Config):
    assert cfg.data.seed is not None  # resolved
    self.cfg, self.seed, self.batch_size = cfg, cfg.data.seed, cfg.train.batch_size
    self.rows = Rows(data.train, data.tokenizer, cfg)

  def at(self, step: int, rows: slice | None = None) -> Batch:
    """Batch number `step`, or only its `rows`."""
    n, reshuffle = self.rows.windows.n, self.cfg.data.reshuffle
    return self.rows.batch(
      records.drawn(self.seed, step, self.batch_size, n, reshuffle, rows).tolist()
    )


class QuestionSet(NamedTuple):
  """A store to be evaluated on, and what reads it."""

  store: RecordStore
  tokenizer: Tokenizer

  @property
  def fingerprint(self) -> str:
    return self.store.fingerprint


class QuestionEval:
  """All windows of a store's first questions, up to `max_tokens` tokens of rows, in their order."""

  def __init__(self, each: QuestionSet, cfg: Config, max_tokens: int | None, stride: int | None):
    if stride is not None:
      raise ConfigError(f"stride={stride}: questions have objective.window_stride; leave it out")
    assert cfg.eval.batch_size is not None  # resolved
    check_lengths(each.store, cfg)
    self.store, self.batch_size = each.store, cfg.eval.batch_size
    self.rows = Rows(each.store, each.tokenizer, cfg)
    windows = self.rows.windows
    ends = np.searchsorted(windows.question, np.arange(len(each.store["context"])), side="right")
    sums = np.cumsum(windows.rows)[ends - 1]
    self.n = (
      len(sums) if max_tokens is None else int(np.searchsorted(sums, max_tokens, side="right"))
    )
    if not self.n:
      raise ConfigError(
        f"eval.tokens={max_tokens}: the first question of {each.store.name} has "
        f"{number_of(sums[0], 'token')} in its "
        "windows; use at least as many, or None for all"
      )
    self.n_windows = int(ends[self.n - 1])
    self.facts = {"tokens": int(sums[self.n - 1]), "questions": self.n, "windows": self.n_windows}
    self.best: list[np.ndarray] = []
    for begin, end in zip([0, *ends[: self.n - 1].tolist()], ends[: self.n].tolist(), strict=True):
      self.best += best_places(windows, slice(begin, end))

  def __len__(self) -> int:
    return -(-self.n_windows // self.batch_size)

  def at(self, number: int, rows: slice | None = None) -> Batch:
    """Batch `number`, or only its `rows`: the arrays of training, and

    may [B, L]: MAY_BEGIN, MAY_END or 0: whether an answer begins or ends there; question and offset [B]:
    which question, and the place in the row of its context's first token; firsts and lasts [B, ANSWERS].
    """
    index = number * self.batch_size + np.arange(self.batch_size)[rows or slice(None)]
    chosen = [w if w < self.n_windows else -1 for w in index.tolist()]
    batch, windows = self.rows.batch(chosen), self.rows.windows
    may_BL = np.zeros_like(batch["tokens"])
    question_B, offset_B = (np.zeros(len(chosen), np.int32) for _ in range(2))
    ends = {name: np.full((len(chosen), ANSWERS), -1, np.int32) for name in ("firsts", "lasts")}
    for b, w in enumerate(chosen):
      if w < 0:
        continue
      i, start, size = (int(a[w]) for a in windows[:3])
      begin = len(self.rows.asked(i)) + 2
      may_BL[b, begin : begin + size] = np.where(self.best[w], MAY_BEGIN, MAY_END)
      question_B[b], offset_B[b] = i, begin - start
      for name, array in ends.items():
        array[b] = self.store[name][i]
    return batch | {"may": may_BL, "question": question_B, "offset": offset_B} | ends


def check_lengths(store: RecordStore, cfg: Config) -> None:
  """ConfigError for a question that is longer than objective.question_tokens, unless texts may be cut."""
  most, sizes = cfg.objective.question_tokens, np.diff(store["question_offsets"])
  longest = int(sizes.argmax())
  if sizes[longest] > most and not cfg.data.truncate:
    begin, end = store["ends"][longest : longest + 2]
    text = store["text"][begin:end].tobytes().decode()
    n = int((sizes > most).sum())
    raise ConfigError(
      f"objective.question_tokens={most}: {n} of {len(sizes)} questions of {store.name} are longer, up to "
      f"{number_of(sizes[longest], 'token')} ({text[:40]!r}...); raise it, or "
      "cut them with data.truncate=True (of lm.evaluate: --truncate)"
    )


def mean_question(data: Records, cfg: Config) -> float:
  """Tokens that a row holds, special ones included."""
  check_lengths(data.train, cfg)
  return float(cut_windows(data.train, cfg).rows.mean())


def check_questions(cfg: Config) -> None:
  """ConfigError for rows without room for a context, and for data keys that questions do not read."""
  data, most = cfg.data, cfg.objective.question_tokens
  if cfg.model.seq_len < most + 4:
    raise ConfigError(
      f"model.seq_len={cfg.model.seq_len}: must hold 3 special tokens, objective.question_tokens={most} and "
      f"a token of the context; use {most + 4} or more"
    )
  if data.label_field is not None:
    raise ConfigError(
      f"data.label_field={data.label_field}: questions have the fields of SQuAD's schema; use None"
    )
  if data.val_split != "documents":
    raise ConfigError(
      f"data.val_split={data.val_split}: questions of an article are held out together; use documents"
    )
  records.check_plain(cfg, "questions")
