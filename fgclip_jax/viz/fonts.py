"""A font that can draw a text: Pillow's own has Latin letters only."""

from collections.abc import Iterable

from PIL import ImageFont

# Looked for by name where systems keep their fonts: Linux, macOS, Windows. The wider ones come first.
FONTS = (
  "NotoSansCJK-Regular.ttc",
  "NotoSansCJKsc-Regular.otf",
  "NotoSansSC-Regular.otf",
  "SourceHanSansSC-Regular.otf",
  "wqy-zenhei.ttc",
  "wqy-microhei.ttc",
  "DroidSansFallbackFull.ttf",
  "uming.ttc",
  "Arial Unicode.ttf",
  "PingFang.ttc",
  "Hiragino Sans GB.ttc",
  "AppleSDGothicNeo.ttc",
  "msyh.ttc",
  "simsun.ttc",
  "msgothic.ttc",
  "malgun.ttf",
  "NotoSans-Regular.ttf",
  "DejaVuSans.ttf",
)
_NO_CHARACTER = "\U0010ffff"  # every font draws it as what it has not

Font = ImageFont.FreeTypeFont


def find_font(texts: Iterable[str], size: int, names: Iterable[str] = FONTS) -> tuple[Font, str]:
  """The font that can draw the most characters of some texts: Pillow's own if it has all, else one that is there.

  Args:
    texts: what is to be drawn.
    size: in pixels.
    names: files of fonts to look for.

  Returns:
    The font, and the characters that it cannot draw.
  """
  characters = sorted({character for text in texts for character in text if not character.isspace()})
  best = ImageFont.load_default(size)
  missing = _missing(best, characters)
  for name in names:
    if not missing:
      break
    try:
      font = ImageFont.truetype(name, size)
    except OSError:
      continue  # not on this machine
    lacks = _missing(font, characters)
    if len(lacks) < len(missing):
      best, missing = font, lacks
  return best, missing


def _missing(font: Font, characters: list[str]) -> str:
  nothing = _draw(font, _NO_CHARACTER)
  return "".join(character for character in characters if _draw(font, character) == nothing)


def _draw(font: Font, character: str) -> tuple[tuple[int, int], bytes]:
  mask = font.getmask(character)
  return mask.size, bytes(mask)
