"""The server on many GPUs: replicas that hold the sessions, and a front that knows which replica holds which.

replica.py   a server of sessions that keeps each of them on disk (kept.py) and answers to its front alone
front.py     what clients talk to: gate, page, and every request handed on to where its session is
fleet.py     which replicas there are (link.py), and the moves of sessions from those that leave or die (remote.py)
ray_serve.py Ray Serve, which starts the replicas, gives them their GPUs, looks after them and replaces them
"""
