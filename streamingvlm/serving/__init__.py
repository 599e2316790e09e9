"""Live commentary over HTTP: sessions by REST, commentary by WebSocket and server-sent events, and a web page."""
