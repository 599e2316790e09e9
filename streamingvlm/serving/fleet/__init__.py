"""The server on many GPUs: replicas that hold the sessions, and a frontend that routes each request to its replica.

frontend.py   the application that clients connect to: authentication, page, and forwarding of requests
fleet.py      the replicas (replica_client.py), and the moves of sessions (remote_session.py) off failed replicas
replica.py    a server whose sessions are stored on disk (session_store.py), and which serves its frontend only
protocol.py   paths and headers between frontend and replicas
ray_serve.py  Ray Serve: starts the replicas, assigns their GPUs, checks their health and replaces them
"""
