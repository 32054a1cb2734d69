"""Who may do what, over real HTTP: keys, roles, rates, and a keys file that changes under a running server."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import httpx
import pytest
from fastapi import Depends, FastAPI
from hypothesis import given
from hypothesis import strategies as st

from serving import problems
from serving.metrics import Metrics
from serving.periodic import Periodic
from serving.request import auth
from serving.request.auth import Access, Key, KeysError
from serving.request.middleware import Observe
from tests import server
from tests.server import ROOT

CLIENT, OPERATOR = "c" * 43, "o" * 43


@pytest.fixture(autouse=True)
def private_files() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@contextmanager
def serve(app: FastAPI) -> Iterator[httpx.Client]:
    """Runs `app`, wrapped as the server wraps its own."""
    problems.install(app)
    app.add_middleware(Observe, metrics=Metrics(), stopping=lambda: False)
    with server.serve(app) as client:
        yield client


@contextmanager
def guarded(keys_file: Path | None) -> Iterator[httpx.Client]:
    """A server with a route for each role; what they return is the key's name."""
    app = FastAPI()
    app.state.access = access = Access(keys_file)
    watch = Periodic("keys", auth.LOOK_SECONDS, access.look)

    @app.get("/predict")
    async def predict(name: str | None = Depends(auth.Required("predict"))) -> str | None:
        return name

    @app.get("/admin")
    async def admin(name: str | None = Depends(auth.Required("admin"))) -> str | None:
        return name

    watch.start()
    with serve(app) as client:
        yield client
    watch.stop()


def line(name: str, role: auth.Role, key: str, per_minute: int | None = None) -> str:
    return Key(name, role, auth.digest_of(key), per_minute).line()


def whose(keys: Access, key: str) -> str | None:
    found = keys.known(key)
    return found.name if found else None


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"# who\n\n{line('lis', 'predict', CLIENT)}  # the ward's\n{line('ops', 'admin', OPERATOR)}\n")
    return path


def test_without_a_file_anyone_may_predict_and_nobody_is_admin() -> None:
    with guarded(None) as client:
        assert client.get("/predict").status_code == 200
        assert client.get("/predict", headers=bearer("any")).status_code == 200
        refused = client.get("/admin", headers=bearer("any"))
    assert refused.status_code == 403
    assert "LEUKDETECT_KEYS_FILE" in refused.json()["detail"]


def test_a_role_opens_what_is_its_own_and_admin_everything(keys_file: Path) -> None:
    with guarded(keys_file) as client:
        opened = {
            (path, name): client.get(path, headers=bearer(key)).status_code
            for path in ("/predict", "/admin")
            for name, key in (("lis", CLIENT), ("ops", OPERATOR))
        }
        refused = client.get("/admin", headers=bearer(CLIENT)).json()
    assert opened == {
        ("/predict", "lis"): 200,
        ("/predict", "ops"): 200,
        ("/admin", "lis"): 403,
        ("/admin", "ops"): 200,
    }
    assert refused["detail"] == "This needs a key of role admin; lis has role predict."


def test_a_reviewer_may_predict_and_is_no_admin(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(line("dr-a", "reviewer", CLIENT))
    with guarded(tmp_path / "keys") as client:
        assert client.get("/predict", headers=bearer(CLIENT)).json() == "dr-a"
        assert client.get("/admin", headers=bearer(CLIENT)).status_code == 403


def test_both_headers_work_and_the_route_learns_whose_key_it_is(keys_file: Path) -> None:
    with guarded(keys_file) as client:
        for headers in (bearer(CLIENT), {"Authorization": f"bearer  {CLIENT}"}, {"X-API-Key": CLIENT}):
            assert client.get("/predict", headers=headers).json() == "lis"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("x" * 43),
        {"Authorization": "Bearer"},
        bearer(auth.digest_of(CLIENT).hex()),
        {"Authorization": CLIENT},
        {"Authorization": f"Basic {CLIENT}"},
        {"X-API-Key": "lis"},
        {"X-API-Key": "schlüssel"},
    ],
    ids=["none", "unknown", "empty", "the hash", "no scheme", "other scheme", "the name", "not ASCII"],
)
def test_no_key_or_an_unknown_one_is_401_and_says_how_to_send_one(keys_file: Path, headers: dict[str, str]) -> None:
    with guarded(keys_file) as client:
        answer = client.get("/predict", headers=[(name.encode(), value.encode()) for name, value in headers.items()])
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.json()["type"] == "urn:leukdetect:problem:unauthorized"
    assert "X-API-Key" in answer.json()["detail"]


def test_a_key_over_its_rate_waits_and_harms_no_other(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{line('slow', 'predict', CLIENT, 1)}\n{line('ops', 'admin', OPERATOR)}\n")
    with guarded(file) as client:
        assert client.get("/predict", headers=bearer(CLIENT)).status_code == 200
        refused = client.get("/predict", headers=bearer(CLIENT))
        assert client.get("/predict", headers=bearer(OPERATOR)).status_code == 200
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert "1 requests a minute" in refused.json()["detail"]


def test_who_waits_as_long_as_told_is_let_in(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(line("busy", "predict", CLIENT, 24))
    keys = Access(file)
    started = time.monotonic()
    passed, wait = 0, None
    while wait is None:
        try:
            keys.allow("predict", keys.known(CLIENT))
            passed += 1
        except problems.ProblemError as refused:
            wait = int(refused.headers["Retry-After"])
    assert 2 <= passed <= 2 + 0.4 * (time.monotonic() - started)  # five seconds' worth at once, then the rate
    time.sleep(wait)
    keys.allow("predict", keys.known(CLIENT))


def eventually(client: httpx.Client, key: str, status: int) -> None:
    """Waits until the key gets this status: the file is not looked at on every request."""
    deadline = time.monotonic() + 30
    while (got := client.get("/predict", headers=bearer(key)).status_code) != status:
        assert time.monotonic() < deadline, f"{got}, not {status}"
        time.sleep(0.05)


def test_keys_change_without_a_restart_and_a_broken_file_changes_nothing(
    keys_file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "LOOK_SECONDS", 0.2)
    fresh = "f" * 43
    caplog.set_level(logging.INFO)
    with guarded(keys_file) as client:
        keys_file.write_text(line("lis-2", "predict", fresh))
        eventually(client, fresh, 200)
        [told] = [vars(each) for each in caplog.records if each.getMessage() == "keys read"]
        assert (told["audit"], told["added"], told["removed"]) == ("keys", ["lis-2"], ["lis", "ops"])
        assert client.get("/predict", headers=bearer(CLIENT)).status_code == 401
        for broken in (lambda: keys_file.write_text("lis predict"), lambda: keys_file.write_text(""), keys_file.unlink):
            caplog.clear()
            broken()
            deadline = time.monotonic() + 30
            while not (errors := [each for each in caplog.records if each.levelno == logging.ERROR]):
                assert time.monotonic() < deadline
                assert client.get("/predict", headers=bearer(fresh)).status_code == 200
                time.sleep(0.05)
            time.sleep(3 * auth.LOOK_SECONDS)
            assert client.get("/predict", headers=bearer(fresh)).status_code == 200
            errors = [each for each in caplog.records if each.levelno == logging.ERROR]
            assert [each.getMessage() for each in errors] == ["the keys stay as they were"]  # once
        keys_file.write_text(line("lis", "predict", CLIENT))
        eventually(client, CLIENT, 200)
    assert fresh not in caplog.text


def test_a_new_line_gives_nobody_a_fresh_start_of_their_rate(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    slow = line("slow", "predict", CLIENT, 1)
    file.write_text(slow)
    with guarded(file) as client:
        assert client.get("/predict", headers=bearer(CLIENT)).status_code == 200
        file.write_text(f"{slow}\n{line('ops', 'admin', OPERATOR)}")
        eventually(client, OPERATOR, 200)
        assert client.get("/predict", headers=bearer(CLIENT)).status_code == 429


HASH = auth.digest_of(CLIENT).hex()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lis predict", "line 1: 2 fields where NAME ROLE SHA256HEX"),
        (f"# x\n\nlis reader {HASH}", "line 3: the role must be one of predict, reviewer, admin"),
        (f"lis predict {HASH[:-1]}", "line 1: the hash must be a SHA-256"),
        (f"lis predict {HASH.upper()}", "line 1: the hash must be a SHA-256"),
        (f"lis predict {HASH} 0", "line 1: the requests per minute must be a whole number above 0"),
        (f"lis predict {HASH} 1.5", "line 1: the requests per minute must be a whole number above 0"),
        (f"{HASH} predict lis", "line 1: the name must be"),
        (f"lis {HASH} predict", "line 1: the role must be one of predict, reviewer, admin"),
        (f"lis predict {HASH}\nlis admin {'0' * 64}", "line 2: the name lis is taken"),
        (f"lis predict {HASH}\nops admin {HASH}", "line 2: ops has the same key as a line above"),
    ],
)
def test_a_broken_file_is_refused_at_the_start_by_line_without_the_hash(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(KeysError) as refused:
        Access(file)
    assert f"{file}, {message}" in str(refused.value)
    assert HASH[:8].lower() not in str(refused.value).lower()


def test_a_file_that_is_missing_empty_or_no_text_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match=r"cannot be read: No such file"):
        Access(tmp_path / "nothing")
    (tmp_path / "keys").write_text("# nobody yet\n")
    with pytest.raises(KeysError, match=r"has no key; `python -m serving.keys` makes one"):
        Access(tmp_path / "keys")
    (tmp_path / "keys").write_bytes(b"\xff\xfe")
    with pytest.raises(KeysError, match=r"is not text"):
        Access(tmp_path / "keys")


@given(
    st.lists(
        st.builds(
            Key,
            st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,39}", fullmatch=True),
            st.sampled_from(get_args(auth.Role)),
            st.binary(min_size=32, max_size=32),
            st.none() | st.integers(1, 999_999_999),
        ),
        unique_by=(lambda key: key.name, lambda key: key.digest),
    )
)
def test_what_a_file_says_is_what_was_written(keys: list[Key]) -> None:
    assert auth.parse("\n".join(key.line() for key in keys)) == keys


def test_a_keys_repr_does_not_show_its_hash() -> None:
    assert repr(auth.parse(f"lis predict {HASH}")) == "[Key(name='lis', role='predict', per_minute=None)]"


def make_key(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serving.keys", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_the_command_prints_a_key_and_a_line_that_lets_it_in(tmp_path: Path) -> None:
    made = make_key("lis", "--role", "predict", "--per-minute", "600")
    key, its_line = made.stdout.splitlines()
    assert len(key) == 43  # 256 bits in base64
    assert key not in its_line
    (tmp_path / "keys").write_text(its_line)
    assert whose(Access(tmp_path / "keys"), key) == "lis"
    assert its_line.endswith(" 600")


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o646, 0o602])
def test_a_file_that_others_may_read_or_change_is_refused(keys_file: Path, mode: int) -> None:
    keys_file.chmod(mode)
    with pytest.raises(KeysError, match=f"others on this machine may (read|change) it .mode {mode:04o}.: chmod o="):
        Access(keys_file)
    if mode & 0o002:
        with pytest.raises(KeysError, match="may change"):
            Access(keys_file, readable=True)
    else:
        assert whose(Access(keys_file, readable=True), CLIENT) == "lis"


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o600, 0o640])
def test_a_group_may_read_the_file(keys_file: Path, mode: int) -> None:
    keys_file.chmod(mode)
    assert whose(Access(keys_file), CLIENT) == "lis"


def test_a_file_that_is_opened_to_others_under_a_server_changes_nothing_and_is_told_of(
    keys_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = Access(keys_file)
    keys_file.chmod(0o644)
    keys.look()
    assert [each.getMessage() for each in caplog.records] == ["the keys stay as they were"]
    assert whose(keys, CLIENT) == "lis"


def test_the_command_closes_a_file_that_others_could_read(keys_file: Path) -> None:
    keys_file.chmod(0o664)
    make_key("new", "--role", "reviewer", "--append", keys_file)
    assert keys_file.stat().st_mode & 0o777 == 0o660


def test_the_command_adds_to_a_file_and_leaves_one_it_would_break_alone(tmp_path: Path) -> None:
    file, link = tmp_path / "keys", tmp_path / "link"
    link.symlink_to(file)
    [first] = make_key("lis", "--role", "predict", "--append", file).stdout.splitlines()
    file.write_text(file.read_text().rstrip())  # an editor that leaves no newline at the end
    file.chmod(0o640)
    [second] = make_key("ops", "--role", "admin", "--append", link).stdout.splitlines()
    keys = Access(file)
    assert (whose(keys, first), whose(keys, second)) == ("lis", "ops")
    assert file.stat().st_mode & 0o777 == 0o640
    assert link.is_symlink()
    before = file.read_bytes()
    again = make_key("ops", "--role", "predict", "--append", file)
    assert (again.returncode, again.stdout, again.stderr) == (
        1,
        "",
        "error: line 3: the name ops is taken by a line above\n",
    )
    assert file.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [file, link]


@pytest.mark.parametrize("wrong", [["a b"], ["lis", "--per-minute", "0"]])
def test_the_command_refuses_what_the_file_could_not_hold(wrong: list[str]) -> None:
    made = make_key(*wrong, "--role", "predict")
    assert (made.returncode, made.stdout) == (1, "")
    assert made.stderr.startswith("error: line 1: ")


def test_keys_that_are_made_at_once_are_all_in_the_file_which_only_its_owner_reads(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    command = [sys.executable, "-m", "serving.keys"]
    makers = [
        subprocess.Popen(
            [*command, f"ward-{number}", "--role", "predict", "--append", file], cwd=ROOT, stdout=subprocess.PIPE
        )
        for number in range(6)
    ]
    printed = [maker.communicate(timeout=60)[0].decode().strip() for maker in makers]
    assert file.stat().st_mode & 0o777 == 0o600
    keys = Access(file)
    assert [whose(keys, key) for key in printed] == [f"ward-{number}" for number in range(6)]
    assert [path.name for path in tmp_path.iterdir()] == ["keys"]


def test_the_api_says_that_it_takes_keys(keys_file: Path) -> None:
    with guarded(keys_file) as client:
        schema = client.get("/openapi.json").json()
    [name] = schema["components"]["securitySchemes"]
    assert schema["components"]["securitySchemes"][name]["scheme"] == "bearer"
    assert schema["paths"]["/predict"]["get"]["security"] == [{name: []}]
