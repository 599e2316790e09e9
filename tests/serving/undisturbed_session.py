"""A session that must not be affected by misbehaving clients."""

import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

from running_server import Running, turns_of

from streamingvlm import StreamingSession
from streamingvlm.model.loading import StreamingModel

_PAUSE_S = 0.2


@contextmanager
def undisturbed(server: Running, model: StreamingModel, jpegs: list[bytes], key: str | None = None) -> Iterator[None]:
    """Push to a session during the block; it must give the lines of the model alone, each once."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    response = server.http.post("/v1/sessions", json={"lag": "wait"}, headers=headers)
    assert response.status_code == 201, response.text
    session, is_over, faults = response.json()["id"], threading.Event(), []
    feeding = threading.Thread(target=_feed, args=(server, session, jpegs, headers, is_over, faults))
    feeding.start()
    try:
        yield
    finally:
        is_over.set()
        feeding.join()
    assert faults == []
    server.http.post(f"/v1/sessions/{session}/finish", headers=headers)
    lines, end = server.lines(session, additional_headers=headers)
    alone = StreamingSession(model)
    seconds = turns_of([jpegs[index % len(jpegs)] for index in range(2 * len(lines))])
    assert [line["id"] for line in lines] == list(range(1, len(lines) + 1))
    assert [line["text"] for line in lines] == [alone.step(second).text for second in seconds]
    assert lines and end["reason"] == "finished"


def _feed(server, session, jpegs, headers, is_over, faults):
    try:
        with server.socket(f"/v1/sessions/{session}/frames", additional_headers=headers) as socket:
            for second in count():
                for index in (2 * second, 2 * second + 1):
                    socket.send(struct.pack(">d", index / 2) + jpegs[index % len(jpegs)])
                server.wait_for(session, second + 1, headers)
                if is_over.wait(_PAUSE_S):
                    return
    except Exception as error:  # noqa: BLE001 - told where the block ends
        faults.append(error)
