"""A small T5 folder of Hugging Face, tokenizer included, for tests."""

import json
import pathlib


def write_t5_folder(folder: pathlib.Path, model) -> None:
  """Saves a model of transformers with a tokenizer of whole words: <pad> 0, </s> 1, then w2 to w37."""
  import tokenizers

  model.save_pretrained(folder)
  words = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, 38)}
  made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
  made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  made.add_special_tokens(["<pad>", "</s>", "<unk>"])
  made.save(str(folder / "tokenizer.json"))
  named = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
  (folder / "tokenizer_config.json").write_text(json.dumps(named))
