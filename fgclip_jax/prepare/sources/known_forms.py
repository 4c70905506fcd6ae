"""Names files of well-known forms that another command reads, with that command."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from fgclip_jax.storage import paths, streams
from fgclip_jax.storage.errors import RecordError


class Form(NamedTuple):
  """What a file is, and the commands that read it, in `prepare` and in `evaluate` (None: it reads none of the form)."""

  what: str
  prepare: str
  evaluate: str | None = None


FORMS = {
  "coco_captions": Form("COCO's captions", "coco --captions {path}", "retrieve coco --annotations {path}"),
  "coco_instances": Form("COCO's boxes", "coco --captions CAPTIONS --instances {path}", "detect --annotations {path}"),
  "karpathy": Form("Karpathy's captions", "karpathy --annotations {path}", "retrieve karpathy --annotations {path}"),
  "finehard": Form("FineHARD's annotations", "finehard --annotations {path}"),
  "visual_genome": Form("Visual Genome's regions", "visual_genome --image_data IMAGE_DATA --regions {path}"),
  "image_data": Form("Visual Genome's list of images", "visual_genome --image_data {path} --regions REGIONS"),
  "tar": Form("images with captions in tar files", "webdataset --input {path}"),
  "img2dataset": Form("img2dataset's Parquet", "webdataset --input {path}"),
  "prepared": Form("a data set that is prepared already", "inspect {path}", "--data {path}"),
  "yolo": Form("labels of YOLO's form", "yolo --images IMAGES"),
  "flickr30k": Form("Flickr30k Entities", "flickr30k --entities {path}"),
}
_URL = re.compile(r"(image_?)?(url|link)s?", re.IGNORECASE)


def advise(form: str, path: str, command: str) -> str:
  """One line: what a file is, and the command that reads it.

  Args:
    form: a key of `FORMS`.
    path: the file or folder.
    command: `prepare` or `evaluate`; where it reads no such form, `prepare` is named.
  """
  what, prepare, evaluate = FORMS[form]
  if command == "evaluate" and evaluate:
    return f"{path} holds {what}: use `python -m fgclip_jax.evaluate {evaluate.format(path=path)}`"
  more = "" if command == "prepare" else ", and `evaluate --data` with what it writes"
  return f"{path} holds {what}: use `python -m fgclip_jax.prepare {prepare.format(path=path)}`{more}"


def advise_download(path: str, field: str) -> str:
  """One line for a list of URLs."""
  form = path.lower().removesuffix(".gz").rpartition(".")[2]
  options = f"--url_list {path} --input_format {form} --url_col {field} --output_format webdataset"
  return (
    f"{path} lists URLs of images in {field!r}: download them with `img2dataset {options} --output_folder DIR`, "
    "then use `python -m fgclip_jax.prepare webdataset --input DIR`"
  )


def name_file(path: str, command: str) -> str | None:
  """The advice for a file whose ending another command reads; None for any other."""
  if path.lower().endswith((".tar", ".tar.gz", ".tgz")):
    return advise("tar", path, command)
  return None


def name_folder(path: str, names: Sequence[str], command: str) -> str | None:
  """The advice for a folder with these names in it; None for one that no other command reads."""
  lower = [name.lower() for name in names]
  if any(".array_record" in name for name in lower):
    return advise("prepared", path, command)
  if any(name.endswith(".tar") for name in lower):
    return advise("tar", path, command)
  if {"sentences", "annotations"} <= {*lower}:
    return advise("flickr30k", path, command)
  if (
    "labels" in lower
    or "obj.names" in lower
    or any(
      name.endswith((".yaml", ".yml"))
      and paths.is_file(file := paths.join(path, names[place]))
      and b"names:" in paths.read(file, 0, 1 << 16)
      for place, name in enumerate(lower)
    )
  ):
    return advise("yolo", path, command)
  return None


def find_container(path: str) -> str | None:
  """The form of a JSON file that is one object of lists; None for any other file."""
  if not path.lower().removesuffix(".gz").endswith(".json"):
    return None
  try:
    for name, raw in streams.walk(path):
      if name == "":
        return None  # a list
      if raw[:1] != b"{" or name not in ("images", "annotations"):
        continue
      value = streams.load(raw)
      if name == "images" and isinstance(value, dict) and "sentences" in value:
        return "karpathy"
      if name == "annotations" and isinstance(value, dict):
        return "coco_captions" if "caption" in value else "coco_instances" if "bbox" in value else None
  except RecordError:
    pass  # a broken file is named where it is read
  return None


def name_records(path: str, record: dict[str, Any], command: str) -> str | None:
  """The advice for a file of which this is a record, in which no field of images was found; None for any other."""
  if "f_path" in record:
    return advise("finehard", path, command)
  if isinstance(record.get("regions"), list) and record["regions"]:
    if isinstance(record["regions"][0], dict) and "phrase" in record["regions"][0]:
      return advise("visual_genome", path, command)
  if {"image_id", "url", "width", "height"} <= {*record}:
    return advise("image_data", path, command)
  if {"key", "url", "status"} <= {*record}:
    return advise("img2dataset", path, command)
  url = next((name for name in record if _URL.fullmatch(str(name))), None)
  return advise_download(path, url) if url is not None else None
