"""Watching over the network: sessions by REST, commentary by WebSocket and server-sent events, and a page."""
