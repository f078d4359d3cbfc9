"""Runs that a Python program carries out, against a real server."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import PATIENCE, Proxy, Server, until

import rejoin

README = Path(__file__).parents[1] / "README.md"


def test_the_example_of_the_readme_is_a_run_with_its_page(server: Server) -> None:
    found = re.search(r"<!-- run by the tests -->\n```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    example = found.group(1)
    assert len([line for line in example.splitlines() if line.strip()]) == 5
    server.task("load-report")
    until(lambda: server.http.get("/tasks/load-report").status_code, lambda status: status == 200)
    environment = {**server.environment, "PYTHONPATH": str(Path(rejoin.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", example], env=environment, check=True, timeout=PATIENCE)
    events = server.events("load-report")
    assert [event["kind"] for event in events] == ["status", "status", "thought", "tool_use", "tool_result", "status"]
    assert events[4]["data"]["output"].count(".") >= 3
    assert events[5]["data"]["state"] == "succeeded"


def test_the_lines_of_the_guide_feed_a_run_from_the_shell(server: Server, tmp_path: Path) -> None:
    if not (shutil.which("curl") and shutil.which("jq")):
        pytest.skip("the lines of the guide need curl and jq")
    guide = (README.parents[2] / "docs" / "guide.md").read_text()
    found = re.search(r"From the shell.*?```sh\n(.*?)```", guide, re.DOTALL)
    assert found is not None
    server.task("import")
    until(lambda: server.http.get("/tasks/import").status_code, lambda status: status == 200)
    script = tmp_path / "import.sh"
    script.write_text("#!/bin/sh\necho 'one \"line\"'\necho two >&2\n")
    script.chmod(0o755)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "token").write_text(server.token)
    lines = found.group(1).replace("http://127.0.0.1:7171", server.url)
    subprocess.run(["bash", "-euo", "pipefail", "-c", lines], cwd=tmp_path, check=True, timeout=PATIENCE)
    said = [event["data"]["text"] for event in server.events("import") if event["kind"] == "message"]
    assert said == ['one "line"', "two"]


def test_everything_that_is_said_comes_out_as_it_was_said(server: Server) -> None:
    with server.client() as client, client.run("elsewhere") as run:
        assert (run.task, run.state, run.attempt, run.params) == ("elsewhere", "running", 1, {})
        run.thought("Straße 😀 \x00")
        run.message("hello", role="user")
        run.progress("half", percent=50)
        call = run.tool_use("shell", {"command": "df"})
        run.tool_output(call, "x" * 40_000, "stderr")
        run.tool_result(call, "shell", ok=False, output="bad", exit=2, duration_ms=7)
        run.event("metric", {"load": [1, 2.5, None], "nested": {"a": True}})
        run.attention("Look at this")
        run.succeed("All done", cost=0.25)
    assert run.state == "succeeded"
    over = server.get(f"/runs/{run.id}")
    assert (over["state"], over["text"], over["attention"]["summary"]) == ("succeeded", "All done", "Look at this")
    events = server.events()[2:]
    kinds = [event["kind"] for event in events]
    assert kinds == [
        "thought",
        "message",
        "status",
        "tool_use",
        *["tool_output"] * 3,
        "tool_result",
        "metric",
        "status",
    ]
    assert events[0]["data"] == {"text": "Straße 😀 \x00"}
    assert events[1]["data"] == {"role": "user", "text": "hello"}
    assert events[2]["data"] == {"state": "progress", "text": "half", "percent": 50}
    assert events[7]["data"] == {
        "call": call, "tool": "shell", "ok": False, "output": "bad", "exit": 2, "duration_ms": 7,
    }  # fmt: skip
    assert events[8]["data"] == {"load": [1, 2.5, None], "nested": {"a": True}}
    assert events[9]["data"]["cost"] == 0.25


def test_a_clean_exit_succeeds_and_an_exception_fails_and_goes_on(server: Server) -> None:
    with server.client() as client:
        with client.run("elsewhere"):
            pass
        assert server.last_run()["state"] == "succeeded"

        with pytest.raises(ZeroDivisionError), client.run("elsewhere") as run, run.tool("divide") as call:
            call.output("so far so good")
            print(1 / 0)
        over = server.last_run()
        assert (over["state"], over["reason"]) == ("failed", "ZeroDivisionError: division by zero")
        results = [event["data"] for event in server.events() if event["kind"] == "tool_result"]
        assert (results[-1]["ok"], results[-1]["output"]) == (False, "ZeroDivisionError: division by zero")

        with client.run("elsewhere") as run:
            run.fail("nothing to do", exit=3)
        over = server.last_run()
        assert (over["state"], over["reason"], over["exit"], run.state) == ("failed", "nothing to do", 3, "failed")

        for raised, state, reason in (
            (KeyboardInterrupt(), "cancelled", "interrupted by Ctrl-C"),
            (SystemExit(4), "failed", "the program ended: 4"),
            (SystemExit(0), "succeeded", None),
        ):
            with pytest.raises(type(raised)), client.run("elsewhere"):
                raise raised
            over = server.last_run()
            assert (over["state"], over["reason"]) == (state, reason)


def test_what_json_does_not_know_is_said_all_the_same(server: Server) -> None:
    circle: dict[str, object] = {}
    circle["self"] = circle
    with server.client() as client, client.run("elsewhere") as run:
        run.event("odd", {"nan": float("nan"), "path": Path("/tmp"), "set": {1}, "lone": "\ud800", 7: "seven"})  # type: ignore[dict-item]
        run.event("odd", circle)
        run.thought("long " * 300_000)
        run.message("after all that")
    odd = [event["data"] for event in server.events() if event["kind"] == "odd"]
    assert odd[0] == {"nan": "nan", "path": "/tmp", "set": [1], "lone": "?", "7": "seven"}
    assert "self" in odd[1]
    assert server.said("thought")[0].startswith("long long")
    assert server.said("message") == ["after all that"]


def test_an_event_that_the_server_refuses_is_left_out_and_the_run_goes_on(server: Server) -> None:
    with server.client() as client, client.run("elsewhere") as run:
        run.thought("before")
        run.event("tool_use", {"call": "", "tool": "no call"})
        run.thought("after")
    assert run.state == "succeeded"
    assert server.said("thought") == ["before", "after"]
    gaps = [event["data"]["gap"] for event in server.events() if "gap" in event["data"]]
    assert gaps == [{"from": 2, "to": 2}]


def test_many_events_of_many_threads_travel_in_few_requests(server: Server, proxy: Proxy) -> None:
    with server.client(proxy.url) as client, client.run("elsewhere") as run:

        def say(thread: int) -> None:
            for number in range(2500):
                run.thought(f"{thread}:{number}")

        threads = [threading.Thread(target=say, args=(thread,)) for thread in range(4)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
    said = server.said("thought")
    assert len(said) == len(set(said)) == 10_000
    for thread in range(4):
        assert [text for text in said if text.startswith(f"{thread}:")] == [f"{thread}:{n}" for n in range(2500)]
    assert proxy.connections <= 4


def test_over_many_cuts_nothing_is_lost_and_nothing_doubled(server: Server, proxy: Proxy) -> None:
    proxy.cut_after = 30_000
    with server.client(proxy.url, buffer_bytes=1024 * 1024) as client, client.run("elsewhere") as run:
        for number in range(5000):
            run.thought(f"thought {number}")
            if number % 1000 == 999:
                # In between all of it is there, so that each part is cut on its own way.
                assert run.flush()
        proxy.cut_after = None
    assert proxy.cuts >= 5
    assert server.said("thought") == [f"thought {number}" for number in range(5000)]
    assert server.get(f"/runs/{run.id}")["state"] == "succeeded"


def test_a_connection_that_dies_in_silence_is_noticed(server: Server, proxy: Proxy) -> None:
    with server.client(proxy.url) as client, client.run("elsewhere") as run:
        run.thought("first")
        until(lambda: server.said("thought"), lambda said: said == ["first"])
        proxy.cut()
        run.thought("second")
        until(lambda: server.said("thought"), lambda said: said == ["first", "second"])


def test_the_server_may_be_stopped_and_killed_in_the_middle(serve: Callable[..., Server]) -> None:
    server = serve()
    with server.client() as client, client.run("elsewhere") as run:
        for number in range(3000):
            run.thought(f"thought {number}")
            if number == 1000:
                server.kill()
                server.start()
            if number == 2000:
                assert run.flush()
                server.terminate()
                server.start()
    assert server.said("thought") == [f"thought {number}" for number in range(3000)]
    assert server.get(f"/runs/{run.id}")["state"] == "succeeded"


def test_what_the_buffer_does_not_hold_while_the_server_is_away_is_a_loss_that_is_shown(
    serve: Callable[..., Server],
) -> None:
    server = serve()
    with server.client(buffer_bytes=20_000) as client, client.run("elsewhere") as run:
        run.thought("thought 0")
        assert run.flush()
        server.kill()
        begun = time.monotonic()
        for number in range(1, 2000):
            run.thought(f"thought {number}")
        assert time.monotonic() - begun < 20, "a server that is away makes nobody wait"
        server.start()
        assert run.flush()
        run.thought("thought 2000")
    said = server.said("thought")
    gaps = [event["data"] for event in server.events() if "gap" in event["data"]]
    lost = sum(gap["gap"]["to"] - gap["gap"]["from"] + 1 for gap in gaps)
    assert gaps
    assert "lost" in gaps[0]["text"]
    assert lost + len(said) == 2001
    assert said[0] == "thought 0"
    assert said[-50:] == [f"thought {number}" for number in range(1951, 2001)], "the newest are kept"


def test_a_fast_program_waits_for_a_server_that_takes_what_it_says(server: Server) -> None:
    with server.client(buffer_bytes=50_000) as client, client.run("elsewhere") as run:
        for number in range(5000):
            run.thought(f"thought {number} {'x' * 100}")
    assert len(server.said("thought")) == 5000
    assert run.state == "succeeded"


def test_a_stop_is_raised_by_what_is_said_next_and_cancels_the_run(server: Server) -> None:
    with server.client() as client:
        with pytest.raises(rejoin.Stopped) as raised, client.run("elsewhere") as run:
            assert run.stop_requested is None
            with run.tool("wait"):
                server.post(f"/runs/{run.id}/stop")
                until(lambda: run.stop_requested, lambda why: why == "asked")
                run.thought("one more")
        assert raised.value.why == "asked"
        over = server.last_run()
        assert (over["state"], over["reason"]) == ("cancelled", "stopped on request")
        # That its program was told of the stop is said beside what it says itself.
        events = [event for event in server.events() if event["data"].get("state") != "progress"]
        assert [event["kind"] for event in events][-2:] == ["tool_result", "status"]
        assert server.said("thought") == []

    with server.client(on_stop="ignore") as client, client.run("elsewhere") as run:
        server.post(f"/runs/{run.id}/stop")
        until(lambda: run.stop_requested, lambda why: why == "asked")
        run.thought("the last one")
        run.succeed("finished all the same")
    assert server.last_run()["state"] == "succeeded"


def test_a_run_that_the_server_ended_is_over(serve: Callable[..., Server]) -> None:
    server = serve('[runs]\nexternal_stop = "200ms"')
    with (
        server.client(on_stop="ignore") as client,
        pytest.raises(rejoin.RunOver) as raised,
        client.run("elsewhere") as run,
    ):
        server.post(f"/runs/{run.id}/stop")
        server.until(f"/runs/{run.id}", lambda run: run["ended_at"] is not None)
        for _ in range(3000):
            run.thought("still there")
            time.sleep(0.01)
    assert raised.value.state == "cancelled"
    assert server.last_run()["state"] == "cancelled"


def test_who_attaches_goes_on_with_the_run_and_fences_the_other(server: Server) -> None:
    with server.client() as client:
        with pytest.raises(rejoin.Fenced), client.run("elsewhere") as first:
            first.thought("of the first")
            first.flush()
            with client.attach(first.id) as second:
                second.thought("of the second")
                second.flush()
                for _ in range(3000):
                    first.thought("too late")
                    time.sleep(0.01)
        assert server.last_run()["state"] == "failed", "the second left its block by the exception of the first"
        assert server.said("thought") == ["of the first", "of the second"]
        with pytest.raises(rejoin.ServerError) as raised, client.attach(first.id):
            pass
        assert raised.value.code == "run_over"


def test_each_run_that_waits_goes_to_one_who_asks(serve: Callable[..., Server]) -> None:
    server = serve()
    server.task("scheduled", '[schedule]\nevery = "1s"\n[policy]\noverlap = "queue"\n')
    taken: list[str] = []
    clients = [server.client() for _ in range(4)]

    def work(client: rejoin.Client) -> None:
        for _ in range(2):
            run = client.claim("scheduled", wait=10)
            if run is None:
                continue
            with run:
                taken.append(run.id)
                assert run.scheduled_for is not None
                run.message("mine")

    until(lambda: server.http.get("/tasks/scheduled").status_code, lambda status: status == 200)
    threads = [threading.Thread(target=work, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    for client in clients:
        client.close()
    assert len(taken) == len(set(taken)) >= 4
    for run in taken:
        assert server.get(f"/runs/{run}")["state"] == "succeeded"


def test_a_claim_that_finds_nothing_gives_nothing(server: Server) -> None:
    with server.client() as client:
        assert client.claim("elsewhere", wait=0) is None
        with pytest.raises(rejoin.ServerError) as raised:
            client.claim("nothing", wait=0)
        assert raised.value.status == 404


def test_an_end_that_does_not_arrive_is_said(serve: Callable[..., Server]) -> None:
    server = serve()
    with server.client(close_timeout=0.5) as client:
        with pytest.raises(rejoin.Undelivered), client.run("elsewhere") as run:
            run.flush()
            server.kill()
        assert run.state == "running"
        server.start()
        # What went wrong in the block is not hidden by it.
        with pytest.raises(ValueError, match="of the block"), client.run("elsewhere") as run:
            run.flush()
            server.kill()
            raise ValueError("of the block")


def test_a_token_is_needed_and_goes_nowhere_unencrypted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REJOIN_TOKEN", raising=False)
    with pytest.raises(rejoin.RejoinError, match="REJOIN_TOKEN"):
        rejoin.Client("http://127.0.0.1:1")
    with pytest.raises(rejoin.RejoinError, match="unencrypted"):
        rejoin.Client("http://rejoin.example", "secret")
    with pytest.raises(rejoin.RejoinError, match="no address"):
        rejoin.Client("rejoin.example", "secret")
    rejoin.Client("https://rejoin.example", "secret").close()


def test_a_wrong_token_and_a_task_that_is_not_there_are_told_at_once(server: Server) -> None:
    with rejoin.Client(server.url, "wrong") as client, pytest.raises(rejoin.ServerError) as raised:
        client.run("elsewhere").__enter__()
    assert raised.value.status == 401
    with server.client() as client, pytest.raises(rejoin.ServerError) as raised:
        client.run("nothing").__enter__()
    assert raised.value.code == "not_found"


def test_async_programs_say_the_same(server: Server) -> None:
    async def main() -> None:
        async with rejoin.AsyncClient(server.url, server.token) as client:
            async with client.run("elsewhere") as run:
                await run.thought("What now?")
                async with run.tool("sleep", {"seconds": 0}) as call:
                    await call.output("zzz")
                    call.result("woke up")
                await run.message("done")
                await run.progress("almost")
                await run.event("metric", {"n": 1})
                assert await run.flush()
                run.succeed("slept well")
            assert run.run.state == "succeeded"

            async def called_off() -> None:
                async with client.run("elsewhere") as run:
                    await run.thought("for ever")
                    await asyncio.sleep(3600)

            # In the block, and while it is entered.
            for is_time in (lambda: server.said("thought")[1:], lambda: server.last_run()["state"] == "running"):
                work = asyncio.create_task(called_off())
                while not is_time():
                    await asyncio.sleep(0)
                work.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await work
            assert await client.claim("elsewhere", wait=0) is None

    asyncio.run(main())
    states = [run["state"] for run in server.get("/tasks/elsewhere/runs")["items"]]
    assert states == ["cancelled", "cancelled", "succeeded"]
    kinds = [event["kind"] for event in server.events()]
    assert kinds[2:8] == ["thought", "tool_use", "tool_output", "tool_result", "message", "status"]
