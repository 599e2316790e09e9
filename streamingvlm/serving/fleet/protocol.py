"""Paths and headers between the frontend and its replicas."""

SECRET_HEADER, OWNER_HEADER, LEAVING_HEADER = "x-frontend-secret", "x-frontend-owner", "x-replica-leaving"
REPLICA_PATH = "/replica"
"""GET: the replica's report. Below it, POST /sessions opens a session and POST /sessions/ID resumes one."""
