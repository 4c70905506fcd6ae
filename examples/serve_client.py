"""Asks a server of `python -m fgclip_jax.serve`, by the standard library alone.

python examples/serve_client.py photo.jpg "a red cup" "a blue cup"
"""

import base64
import json
import os
import sys
import urllib.request

SERVER = os.environ.get("FGCLIP_SERVER", "http://127.0.0.1:8000")


def ask(path: str, **question):
  """Sends a question as JSON and returns the answer; `FGCLIP_TOKEN` holds the server's token, if it has one."""
  headers = {"content-type": "application/json", "authorization": f"Bearer {os.environ.get('FGCLIP_TOKEN', '')}"}
  request = urllib.request.Request(f"{SERVER}{path}", json.dumps(question).encode(), headers)
  with urllib.request.urlopen(request, timeout=60) as answer:
    return json.load(answer)


if __name__ == "__main__":
  picture, *texts = sys.argv[1:]
  with open(picture, "rb") as file:
    image = base64.b64encode(file.read()).decode()
  left, right = [0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]
  rows = ask("/v1/similarity", image=image, texts=texts, boxes=[left, right])["similarities"]
  for name, row in zip(("left half", "right half"), rows, strict=True):
    print(name, {text: round(value, 3) for text, value in zip(texts, row, strict=True)})
