"""``limbeck up`` leaves nothing behind, however it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.e2e.stack import running_stack
from tests.worker.processes import ROOT


def _gone(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


def test_ctrl_c_ends_every_process_with_exit_code_0(tmp_path: Path) -> None:
    with running_stack(tmp_path / "data") as stack:
        family = stack.family()
        assert len(family) >= 3, "supervisor, API and worker"
        stack.process.send_signal(signal.SIGINT)
        assert stack.process.wait(60) == 0, stack.log.read_text()
        assert _gone(family, 10) == []


def test_ctrl_c_while_it_starts_leaves_no_traceback(tmp_path: Path) -> None:
    """Guards a newcomer's second thought: most of what ``limbeck up`` does in its first second is importing."""
    command = [sys.executable, "-m", "worker.up", "--port", "0", "--data-dir", str(tmp_path / "data")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        maps, deadline = Path(f"/proc/{process.pid}/maps"), time.monotonic() + 60
        while "pydantic_core" not in maps.read_text():  # the settings, which nearly everything else comes behind
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, said) == (0, "")


def test_a_killed_supervisor_takes_its_processes_with_it(tmp_path: Path) -> None:
    with running_stack(tmp_path / "data") as stack:
        family = stack.family()
        stack.process.kill()
        assert _gone(family, 15) == []


def test_a_killed_api_comes_back_on_the_same_port(tmp_path: Path) -> None:
    import httpx

    with running_stack(tmp_path / "data") as stack:
        api = next(one for one in stack.family() if "api" in one.cmdline())
        api.kill()
        deadline = time.monotonic() + 20
        while True:
            try:
                if httpx.get(f"{stack.url}/readyz", timeout=2).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline, stack.log.read_text()
            time.sleep(0.2)
