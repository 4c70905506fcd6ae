"""Checks of captions that a model wrote: is it a description of a picture, whole, and in its own words?

| class | a caption that has it |
|---|---|
| `caption_empty` | no letter and no digit |
| `caption_refusal` | an apology or a refusal in place of a description |
| `caption_special_tokens` | marks of a model's template: `<|im_end|>`, `</s>`, `[INST]`, `<box>` |
| `caption_numbers` | coordinates or probabilities |
| `caption_markup` | code, lists or headings that are no prose; `clean` removes what leaves prose |
| `caption_repeats` | a phrase five times in a row, or half its sentences equal but for numbers |
| `caption_echoes_prompt` | eight words in a row of the instructions |
| `caption_cut` | no end: it stopped at the limit of tokens |
| `caption_short`, `caption_long` | words outside the limits |
| `caption_same_for_many` | the text of more than three other pictures; found by `SameText` |

Notes, which leave nothing out: `caption_meta` (words about the picture at its beginning, removed by `clean`) and
`caption_speculates` (guesses).
"""

import collections
import dataclasses
import functools
import hashlib
import re
from collections.abc import Sequence

from fgclip_jax.prepare.checks import find_repetition, normalize

WORDS = (20, 400)  # of a long caption
SHORT_WORDS = (2, 60)  # of a short one
ECHO = 8  # words in a row
REFUSAL_WITHIN = 60  # characters from the beginning
SAME = 3  # pictures that may have one text
HAN_PER_WORD = 1.6  # Chinese characters for a word of English

_REFUSAL = re.compile(
  r"\b(?:i'?m|i am|we'?re|we are)?\s*(?:very |so |really )?(?:sorry|afraid)\b"
  r"(?=.{0,40}\b(?:but|can|cannot|not|unable|i)\b|[,.!]|$)"
  r"|\bi(?:'m| am)?\s+(?:can(?:no|')?t|cannot|unable|not able|do not|don't|won't|will not)\b"
  r"|\b(?:unable|not able|impossible)\s+to\s+(?:see|view|describe|assist|help|process|analy[sz]e|identify|provide"
  r"|access|determine)\b"
  r"|\bas an? (?:ai|language model|artificial)|\bapologi[sz]e\b|\bmy apologies\b"
  r"|\b(?:can(?:no|')?t|cannot) (?:assist|help|provide|fulfil|process|comply|describe|see|view|access)"
  r"|\bplease (?:provide|upload|share|send|attach)\b"
  r"|\bno (?:image|picture|photo)\b.{0,20}\b(?:provided|attached|visible|uploaded|was)\b"
  r"|\bagainst (?:my|our|the) (?:guidelines|policy|policies)"
  r"|抱歉|对不起|很遗憾|无法(?:查看|看到|描述|识别|处理|提供|回答|访问|协助|帮助)|我(?:不能|无法|看不到)"
  r"|作为(?:一个)?(?:人工智能|AI|语言模型)|请(?:提供|上传)"
  r"|\blo siento\b|\bno puedo\b|\bje suis désolé|\bdésolée?\b|\bje ne peux pas\b|\bes tut mir leid\b"
  r"|\bich kann (?:nicht|keine?|dieses|das|leider)\b|\bentschuldigung\b|\bdesculpe\b|\bnão posso\b|\bmi dispiace\b"
  r"|\bnon posso\b|申し訳|すみません|できません|죄송|извините|не могу\b",
  re.IGNORECASE | re.DOTALL,
)
_QUOTED = re.compile(r'"[^"]{1,100}"|“[^”]{1,100}”|「[^」]{1,100}」')
_SPECIAL = re.compile(
  r"<\|[^|<>]{0,40}\|?>?|</?(?:s|box|ref|quad|img|image|im_start|im_end|eos|bos|pad|unk|think|tool_call|start_of_turn"
  r"|end_of_turn|p|phrase|object|delimiter_of_multi_objects|loc_?\d*|grounding)>"
  r"|\[/?INST\]|<<?/?SYS>>?|\[/?(?:IMG|BOS|EOS|CLS|SEP)\]|<0x[0-9A-F]{2}>|▁",
  re.IGNORECASE,
)
_NUMBER = r"[-+]?\d*\.?\d+%?"
_NUMBERS = re.compile(
  rf"[\[(]\s*{_NUMBER}\s*(?:[,;]\s*{_NUMBER}\s*){{3,}}[\])]"  # a box
  rf"|[\[(]\s*\d*\.\d+\s*[,;]\s*\d*\.\d+\s*[\])]"  # a point
  r"|\b(?:bbox|bounding[ _-]?box(?:es)?|coordinates?|confidence|probabilit(?:y|ies)|score|logits?)\b"
  r"[^.]{0,20}?[\[(:=]?\s*\d*\.?\d"
  r"|(?<!\bfor )(?<!\band )(?<!\bor )(?<!\bto )(?<![$£€])\b0\.\d{2,}\b"
  r"(?!\s*(?:mm|cm|m|kg|g|l|ml|oz|inch|inches|percent|seconds?|miles?)\b)"
  r"|\b[xy][12]?\s*[=:]\s*\d|(?:坐标|置信度|概率)[^。]{0,6}\d",
  re.IGNORECASE,
)
_FENCE = re.compile(r"^\s*```\w*\s*\n?(.*?)\n?\s*```\s*$", re.DOTALL)
_LINE_MARK = re.compile(r"^\s*(?:#{1,6}\s+|>\s+)", re.MULTILINE)
_BULLET = re.compile(r"^\s*(?:[-*•+]|\d{1,2}[.)])\s+\S", re.MULTILINE)
_EMPHASIS = re.compile(r"(\*\*|__|\*)(?=\S)(.+?)(?<=\S)\1")
_LABEL = re.compile(
  r"^\s*(?:(?:image |long |short |detailed )?(?:caption|description)|answer|output|response|描述|标题|图片描述)"
  r"\s*[:：]\s*",
  re.IGNORECASE,
)
_MARKUP = re.compile(
  r"```|^\s*\|.*\|\s*$|<(?:br|div|b|i|ul|li|a|h\d)\b[^>]*>|^\s*[{\[].*[}\]]\s*$|\]\(http", re.MULTILINE | re.DOTALL
)
_PICTURE = r"(?:image|picture|photo(?:graph)?|scene|photographic image|illustration|snapshot|shot)"
_META = re.compile(
  rf"^\s*(?:(?:in|within) (?:this|the) {_PICTURE},?\s+(?:we (?:can )?see\s+|there (?:is|are)\s+|you can see\s+)?"
  rf"|(?:this|the)(?: \w+)? {_PICTURE}\s+(?:shows?|depicts?|features?|captures?|presents?|displays?|portrays?"
  rf"|showcases?|contains?|is of|is a {_PICTURE} of)\s+"
  rf"|(?:an?|the) (?:\w+ )?{_PICTURE} (?:of|showing|depicting|featuring|with)\s+"
  r"|(?:here is|here's|sure[,!]?|certainly[,!]?|of course[,!]?)[^.:\n]{0,60}[:.!]\s*"
  r"|(?:这|该)(?:张|幅|是一张|是一幅)?(?:图片|照片|图像|画面|图)(?:中|里|上)?"
  r"(?:展示|显示|呈现|描绘|拍摄)?(?:了|的是)?[，：:]?"
  r"|(?:图片|照片|图像|画面|图)(?:中|里|上)?(?:展示|显示|呈现|描绘|拍摄)(?:了|的是)?[，：:]?)",
  re.IGNORECASE,
)
_SPECULATION = re.compile(
  r"\b(?:perhaps|possibly|probably|presumably|maybe|might|could be|may be|likely|suggest(?:s|ing)?|appears? to be"
  r"|seems? to|impl(?:y|ies|ying)|indicat(?:es|ing) that|evok(?:es|ing)|as if)\b|可能|也许|似乎|大概|或许|仿佛|暗示",
  re.IGNORECASE,
)
_END = re.compile(r"[.!?…。！？](?:[\"'”’)\]»」』]*)\s*$")
_SENTENCE = re.compile(r"[.!?。！？\n]+")
_HAN = re.compile(r"[\u3400-\u9fff]")


@dataclasses.dataclass(frozen=True)
class Cleaned:
  """A caption without what a model wrote around it.

  Attributes:
    text: the caption.
    notes: what was removed or is worth counting: `caption_markup`, `caption_meta`, `caption_speculates`.
  """

  text: str
  notes: tuple[str, ...]


def clean(caption: str) -> Cleaned:
  """Removes fences, headings, emphasis, labels and words about the picture, where prose is left."""
  notes, text = [], caption.strip()
  if fenced := _FENCE.match(text):
    text = fenced[1].strip()
  text = _EMPHASIS.sub(r"\2", text)
  text = _LINE_MARK.sub("", text)
  text = _LABEL.sub("", text)
  if len(text) > 2 and text[0] + text[-1] in ('""', "“”", "「」") and text[0] not in text[1:-1]:
    text = text[1:-1].strip()
  if len(_BULLET.findall(text)) <= 1 and not _MARKUP.search(text):  # a list or table stays one and is refused
    text = _BULLET.sub(lambda match: match[0].strip()[-1], text, count=1) if _BULLET.match(text) else text
    text = " ".join(text.split())
  if text != " ".join(caption.split()):
    notes.append("caption_markup")
  plain = text
  while (meta := _META.match(text)) and len(text) - meta.end() > 1:  # `Sure! Here is a caption: the image shows ...`
    rest = text[meta.end() :].lstrip()
    text = rest[:1].upper() + rest[1:]
  if text != plain:
    notes.append("caption_meta")
  if _SPECULATION.search(text):
    notes.append("caption_speculates")
  return Cleaned(text, tuple(notes))


def check(
  caption: str,
  prompts: Sequence[str] = (),
  words: tuple[int, int] = WORDS,
  finished: bool = True,
  at_limit: bool = False,
) -> str | None:
  """Returns the class of what is wrong with a cleaned caption; None if nothing is.

  Args:
    caption: the text, as `clean` leaves it.
    prompts: the instructions that the model was given.
    words: the fewest and most words; Chinese characters count as 1 / 1.6 words.
    finished: the model stopped by itself; False: the server says that it was stopped by the limit of tokens.
    at_limit: the answer has as many tokens as it was allowed: without a final mark it was cut.
  """
  if not any(character.isalnum() for character in caption):
    return "caption_empty"
  count = count_words(caption)
  if echoes(caption, prompts):
    return "caption_echoes_prompt"
  if refuses(caption):
    return "caption_refusal"
  if _SPECIAL.search(caption):
    return "caption_special_tokens"
  if _NUMBERS.search(caption):
    return "caption_numbers"
  if _MARKUP.search(caption) or len(_BULLET.findall(caption)) > 1:
    return "caption_markup"
  if repeats(caption):
    return "caption_repeats"
  if not finished or (at_limit and not _END.search(caption)):
    return "caption_cut"
  if count < words[0]:
    return "caption_short"
  if count > words[1]:
    return "caption_long"
  return None


def refuses(text: str) -> bool:
  """Whether a text apologises or declines: in its first `REFUSAL_WITHIN` characters, or anywhere if it is short."""
  prose = _QUOTED.sub('""', text)  # a sign may say `Sorry, we are closed`
  refusal = _REFUSAL.search(prose if count_words(prose) > 5 else text)
  return refusal is not None and (refusal.start() < REFUSAL_WITHIN or count_words(text) < WORDS[0])


def count_words(text: str) -> float:
  """Counts words; Chinese characters as parts of words."""
  han = len(_HAN.findall(text))
  return len(_HAN.sub(" ", text).split()) + han / HAN_PER_WORD if han else float(len(text.split()))


def repeats(text: str) -> bool:
  """Whether a phrase comes five times in a row, or half of four or more sentences are equal but for numbers."""
  spaced = " ".join(_HAN.sub(lambda match: f" {match[0]} ", text).split())
  plain = " ".join(re.sub(r"\d+", "0", re.sub(r"[^\w\s]", " ", spaced.lower())).split())
  if find_repetition(spaced) or find_repetition(plain):
    return True
  sentences = [re.sub(r"\d+", "0", normalize(part)) for part in _SENTENCE.split(text) if part.strip()]
  if len(sentences) < 4:
    return False
  return collections.Counter(sentences).most_common(1)[0][1] * 2 >= len(sentences)


def echoes(text: str, prompts: Sequence[str]) -> bool:
  """Whether a text has eight words in a row of one of the prompts (of Chinese, sixteen characters)."""
  words = _echo_words(text)
  if len(words) < ECHO or not prompts:
    return False
  known = _prompt_runs(tuple(prompts))
  for start in range(len(words) - ECHO + 1):
    if tuple(words[start : start + ECHO]) in known:
      return True
  return False


def _echo_words(text: str) -> list[str]:
  # Two Chinese characters are about a word.
  return re.findall(r"[\u3400-\u9fff]{2}|[^\W_\u3400-\u9fff]+|[\u3400-\u9fff]", text.lower())


@functools.lru_cache(64)
def _prompt_runs(prompts: tuple[str, ...]) -> frozenset[tuple[str, ...]]:
  runs = set()
  for prompt in prompts:
    for offset in (0, 1):  # Chinese pairs begin at either character
      words = _echo_words(prompt[offset:] if _HAN.match(prompt[:1]) else prompt)
      runs |= {tuple(words[start : start + ECHO]) for start in range(len(words) - ECHO + 1)}
  return frozenset(runs)


class SameText:
  """Finds one text given to many pictures: `caption_same_for_many`. It keeps a hash of each text, about 120 bytes."""

  def __init__(self, most: int = SAME):
    """Makes a counter that allows a text for `most` pictures."""
    self._most = most
    self._counts: dict[bytes, int] = {}

  def add(self, caption: str) -> bool:
    """Counts a caption, once for each different picture; returns whether too many pictures have it now."""
    key = hashlib.blake2b(normalize(caption).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    count = self._counts[key] = self._counts.get(key, 0) + 1
    return count > self._most
