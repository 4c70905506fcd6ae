"""Gemma's tokenizer for tests: a small one of its kind, and the real one where it is on this machine."""

import os
import pathlib

import pytest
import tokenizers

PIECES = ["<pad>", "<eos>", "<bos>", "<unk>"]


def write_small(path: pathlib.Path) -> pathlib.Path:
  """A `tokenizer.json` of Gemma's kind: byte fallback, spaces as ▁, no pre-tokenizer; with a few merges."""
  letters = ["▁", *"abcdefghijklmnopqrstuvwxyzABC,.0123456789"]
  merges = [("c", "a"), ("ca", "t"), ("▁", "cat"), ("d", "o"), ("▁", "▁")]
  pieces = [*PIECES, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *map("".join, merges)]
  model = tokenizers.models.BPE(
    {piece: number for number, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
  )
  backend = tokenizers.Tokenizer(model)
  backend.normalizer = tokenizers.normalizers.Replace(" ", "▁")
  steps = [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
  backend.decoder = tokenizers.decoders.Sequence(steps)
  backend.add_special_tokens([tokenizers.AddedToken(piece, normalized=False) for piece in PIECES])
  backend.enable_truncation(3)  # files may say so; the length is the caller's
  backend.enable_padding(length=9)
  backend.save(str(path))
  return path


def find_gemma() -> str:
  """The file of Gemma 1 and 2, 17 MB (sha256 7da53ca2...), named by FGCLIP_GEMMA_TOKENIZER; without it a test skips."""
  path = os.environ.get("FGCLIP_GEMMA_TOKENIZER", "")
  if not os.path.isfile(path):
    pytest.skip("needs Gemma's tokenizer.json, named by FGCLIP_GEMMA_TOKENIZER")
  return path
