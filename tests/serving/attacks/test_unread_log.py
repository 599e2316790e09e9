"""A server whose log nobody reads goes on answering, and tells afterwards what it dropped."""

import json
import logging
import re
import subprocess
import sys

import httpx
import pytest

from streamingvlm.serving.logs import DroppingQueueHandler, JsonFormatter

NUM_REQUESTS = 600  # a pipe holds the log of some 200
LIMITS = ["limits.requests_per_s=100000", "limits.burst_requests=100000"]


@pytest.mark.attacks
def test_a_log_that_is_not_read_stops_no_request():
    command = [sys.executable, "-m", "streamingvlm", "serve", "port=0", *LIMITS]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url = re.search(r"http://\S+", server.stdout.readline())[0]
        with httpx.Client(base_url=url, timeout=20) as http:
            codes = {http.get(f"/v1/sessions/{'x' * 100}").status_code for _ in range(NUM_REQUESTS)}
        assert codes == {404}
    finally:
        server.terminate()
        assert server.wait(30) is not None
        server.stdout.close()
        server.stderr.close()


def test_records_without_room_are_dropped_and_counted():
    handler = DroppingQueueHandler(max_waiting=3)
    records = [logging.makeLogRecord({"msg": f"line {number}", "levelname": "INFO"}) for number in range(9)]
    for record in records[:7]:
        handler.emit(record)
    for _ in range(3):
        handler.queue.get()
    handler.emit(records[7])
    waiting = [json.loads(JsonFormatter().format(handler.queue.get())) for _ in range(2)]
    assert [(line["level"], line["message"]) for line in waiting] == [
        ("warning", "4 log lines were dropped"),
        ("info", "line 7"),
    ]


def test_control_characters_are_escaped():
    record = logging.makeLogRecord({"msg": "a\nb\x1b[31m\x9b\u2028\u202e"})
    line = JsonFormatter().format(record)
    assert line.isascii() and line.isprintable()
    assert json.loads(line)["message"] == record.msg
