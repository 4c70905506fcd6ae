"""Two runs do not train in one workdir; what a killed one leaves stops nobody for long."""

import json
import os
import subprocess
import sys
import threading

import pytest

from fgclip_jax.train import workdir as workdirs
from fgclip_jax.train.workdir import FILE, Lease, WorkdirInUseError

EVERY = 0.2
ELSEWHERE = {"id": "b", "host": "other", "pid": 7, "machine": "another machine", "started": "1", "renewed": 3}


def write(folder, holder) -> None:
  (folder / FILE).write_text(holder if isinstance(holder, str) else json.dumps(holder))


def test_a_second_run_is_refused_while_the_first_renews(tmp_path):
  said = []
  first = Lease(str(tmp_path), said.append, every=1.0)
  with pytest.raises(WorkdirInUseError, match=rf"^process {os.getpid()} on .* trains in .*: end that run first, or"):
    Lease(str(tmp_path), said.append, every=1.0)
  first.check_now()
  first.close()
  assert os.listdir(tmp_path) == []
  Lease(str(tmp_path), said.append, every=1.0).close()  # and afterwards it may
  assert len(said) == 1 and "waiting up to" in said[0]


def test_one_that_was_killed_here_is_replaced_at_once(tmp_path):
  begin = "import os, sys; from fgclip_jax.train.workdir import Lease; Lease(sys.argv[1]); os.kill(os.getpid(), 9)"
  assert subprocess.run([sys.executable, "-c", begin, str(tmp_path)]).returncode == -9
  assert os.listdir(tmp_path) == [FILE]
  said = []
  Lease(str(tmp_path), said.append, every=1000.0).close()
  assert said == []


def test_a_number_that_another_process_has_got_is_no_holder(tmp_path):
  mine = {**workdirs._identity(os.getpid()), "id": "a", "host": "here", "pid": os.getpid(), "renewed": 1}
  write(tmp_path, mine | {"started": mine["started"] + "0"})
  said = []
  Lease(str(tmp_path), said.append, every=1000.0).close()
  assert said == []


@pytest.mark.parametrize("holder", [ELSEWHERE, "{cut", "[]", {}, {"pid": -1}, {"pid": "x"}, {"pid": 10**30}])
def test_one_of_another_machine_is_watched_and_replaced(tmp_path, holder):
  write(tmp_path, holder)
  said = []
  Lease(str(tmp_path), said.append, EVERY).close()
  assert len(said) == 1 and "waiting up to 1 s" in said[0]
  assert os.listdir(tmp_path) == []


def test_one_of_another_machine_that_is_renewed_is_refused(tmp_path):
  write(tmp_path, ELSEWHERE)
  renewal = threading.Timer(EVERY, write, (tmp_path, ELSEWHERE | {"renewed": 4}))
  renewal.start()
  with pytest.raises(WorkdirInUseError, match="^process 7 on other trains in"):
    Lease(str(tmp_path), every=1.0)
  renewal.join()
  assert json.loads((tmp_path / FILE).read_text())["host"] == "other"


def test_a_run_whose_lease_was_taken_ends_and_leaves_it(tmp_path):
  lease = Lease(str(tmp_path), every=EVERY)
  write(tmp_path, ELSEWHERE)
  lease._thread.join(20)
  with pytest.raises(WorkdirInUseError, match="^process 7 on other has begun to train in .*, and ends$"):
    lease.check()
  lease.close()
  assert os.listdir(tmp_path) == [FILE]


def test_a_renewal_that_fails_is_said_once_and_tried_again(tmp_path, monkeypatch):
  said, failed, renewed, fails = [], threading.Event(), threading.Event(), True
  lease = Lease(str(tmp_path), said.append, every=0.02)
  write_file = workdirs.paths.write

  def write_or_fail(path, data):
    if fails:
      failed.set()
      raise OSError("no space")
    write_file(path, data)
    renewed.set()

  monkeypatch.setattr(workdirs.paths, "write", write_or_fail)
  assert failed.wait(20)
  fails = False
  assert renewed.wait(20)
  lease.close()
  assert len(said) == 1 and "cannot be renewed (no space); trying again" in said[0]
