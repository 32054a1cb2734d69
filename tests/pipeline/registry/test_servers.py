"""The servers of a deployment, as HTTP knows them."""

import http.server
import threading

import pytest

from pipeline.registry.servers import Server
from pipeline.stage import Problem


def test_a_redirect_is_not_followed_with_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get("X-API-Key")))
            self.send_response(307)
            self.send_header("Location", f"http://localhost:{self.headers['Host'].partition(':')[2]}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    monkeypatch.setenv("LEUKDETECT_ADMIN_KEY", "key")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as elsewhere:
        threading.Thread(target=elsewhere.serve_forever).start()
        try:
            server = Server(f"http://127.0.0.1:{elsewhere.server_address[1]}", "leukdetect", "champion")
            with pytest.raises(Problem, match=r"redirects to http://localhost:.*/elsewhere, where keys are not taken"):
                server._ask("GET", "/health")
        finally:
            elsewhere.shutdown()
    assert asked == [("/health", "key")]
