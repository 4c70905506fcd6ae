"""A record's captions as token ids, made once when it is written instead of every time it is read."""

from fgclip_jax.data.record import Ids, Record, Tokens
from fgclip_jax.data.tokenizers.clip import Tokenizer


def make(record: Record, tokenizer: Tokenizer) -> Tokens:
  """The ids of every caption of a record, whole, with start and end id; an empty long caption has none."""
  regions = record.regions
  texts = [record.short, record.long]
  texts += [text for region in regions for text in (region.short, region.long, *region.negatives)]
  encoded = iter(tokenizer.encode_batch(texts))

  def take(text: str | None = None) -> Ids:
    ids = tuple(next(encoded))
    return () if text == "" else ids

  short, long = take(), take(record.long)
  region_short, region_long, negatives = [], [], []
  for region in regions:
    region_short.append(take())
    region_long.append(take(region.long))
    negatives.append(tuple(take() for _ in region.negatives))
  return Tokens(short, long, tuple(region_short), tuple(region_long), tuple(negatives))
