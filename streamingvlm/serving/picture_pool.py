"""Kept child processes that open pictures with a deadline and a memory limit."""

import json
import multiprocessing
import queue
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from streamingvlm.errors import VideoError

_NUM_PROCESSES = 2
_START_S = 60.0
_DEADLINE_S = 2.0
_SCRIPT = Path(__file__).with_name("picture_process.py")


class PicturePool:
    """Child processes, started when they are needed; one that is killed costs one refused picture."""

    def __init__(self, num_processes: int = _NUM_PROCESSES, *, deadline_s: float = _DEADLINE_S):
        self._deadline_s = deadline_s
        self._idle: queue.LifoQueue[_PictureProcess | None] = queue.LifoQueue()
        for _ in range(num_processes):
            self._idle.put(None)

    def open(self, data: bytes, formats: Sequence[str], max_pixels: int, *, header_only: bool = False) -> bytes:
        """Return width and height as big-endian uint32 and the RGB bytes, or nothing if only the header is read.

        Blocks until a process is free. Raises VideoError if the picture is invalid or beyond a limit.
        """
        asked = {"formats": list(formats), "max_pixels": max_pixels, "header_only": header_only}
        process = self._idle.get()
        try:
            process = process or _PictureProcess()
            reply = process.ask(json.dumps(asked).encode(), data, self._deadline_s)
        except BaseException as error:
            if process is not None:
                process.kill()
            process = None
            if isinstance(error, TimeoutError):
                raise VideoError(f"the frame took over {self._deadline_s:g} s to decode; send it smaller") from None
            if isinstance(error, EOFError | OSError):
                raise VideoError("the frame ended its decoder; send a whole picture") from None
            raise
        finally:
            self._idle.put(process)
        if reply[:1] != b"\0":
            raise VideoError(reply[1:].decode())
        return reply[1:]


class _PictureProcess:
    """One child process. It ends by itself when this end of its socket is closed, also if this process is killed."""

    def __init__(self):
        self._connection, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_SCRIPT), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the server
            )
        self._receive(_START_S)

    def ask(self, asked: bytes, data: bytes, deadline_s: float) -> bytes:
        """Return the reply to a request. Raises TimeoutError, and EOFError or OSError if the process has died."""
        self._connection.send_bytes(asked)
        self._connection.send_bytes(data)
        return self._receive(deadline_s)

    def kill(self):
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def _receive(self, timeout_s: float) -> bytes:
        if not self._connection.poll(timeout_s):
            raise TimeoutError
        return self._connection.recv_bytes()
