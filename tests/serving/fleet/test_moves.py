import threading
import time
from contextlib import ExitStack

from running_fleet import LocalReplicas, fronting

from streamingvlm.serving.config import Limits, ServerConfig


def test_move(pitch, match_jpegs, tmp_path):
    config = ServerConfig(limits=Limits(requests_per_s=1e4, burst_requests=10000))
    with ExitStack() as stack:
        replicas = LocalReplicas(pitch, config, tmp_path, stack)
        a = replicas.start("a")
        b = replicas.start("b")
        front = stack.enter_context(fronting(replicas.find, config))
        while front.http.get("/ready").status_code != 200:
            time.sleep(0.05)
        time.sleep(1.5)
        ids = [front.open(lag="wait") for _ in range(2)]
        assert [len(s.hub._sessions) for s in (a, b)] == [1, 1]
        heard = {i: [] for i in ids}

        def listen(i):
            lines, end = front.lines(i)
            heard[i] = (lines, end)

        threads = [threading.Thread(target=listen, args=(i,)) for i in ids]
        for t in threads:
            t.start()
        for n in range(40):
            for i in ids:
                r = front.http.post(f"/v1/sessions/{i}/frames", params={"time_s": n / 2}, content=match_jpegs[n])
                while r.status_code == 503:
                    time.sleep(0.1)
                    r = front.http.post(f"/v1/sessions/{i}/frames", params={"time_s": n / 2}, content=match_jpegs[n])
                assert r.status_code == 202, r.text
            if n == 15:
                del replicas.servers["a"]
                threading.Thread(target=a.leave).start()
        for i in ids:
            assert front.http.post(f"/v1/sessions/{i}/finish").status_code == 202
        for t in threads:
            t.join(60)
        texts = []
        for i in ids:
            lines, end = heard[i]
            print(end, [l["id"] for l in lines])
            assert [l["id"] for l in lines] == list(range(1, 21))
            texts.append([l["text"] for l in lines])
        assert texts[0] == texts[1]
        print(front.http.get("/metrics").text[:3000])
