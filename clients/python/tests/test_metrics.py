"""`/metrics` as Prometheus' own library for Python reads it."""

from __future__ import annotations

import math

import httpx
import pytest
from conftest import PATIENCE, Server
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families


def scrape(server: Server) -> dict[str, Metric]:
    token = (server.home / "data" / "metrics-token").read_text()
    asked = {"Authorization": f"Bearer {token}"}
    answer = httpx.get(f"{server.url}/metrics", headers=asked, timeout=PATIENCE, trust_env=False)
    answer.raise_for_status()
    families = list(text_string_to_metric_families(answer.text))
    by_name = {family.name: family for family in families}
    assert len(by_name) == len(families), "a family is there twice"
    return by_name


def value(families: dict[str, Metric], family: str, **labels: str) -> float:
    # The library takes `_total` from the name of the family, and leaves it on the samples.
    samples = families[family].samples
    values = [sample.value for sample in samples if sample.labels == labels]
    assert len(values) == 1, (family, labels, samples)
    return values[0]


def test_what_runs_did_is_what_a_scrape_says(server: Server) -> None:
    assert value(scrape(server), "rejoin_runs_ended", state="succeeded") == 0
    with server.client() as client:
        with client.run("elsewhere") as run:
            run.thought("one")
            run.thought("two")
        with pytest.raises(ZeroDivisionError), client.run("elsewhere"):
            raise ZeroDivisionError
    families = scrape(server)
    assert value(families, "rejoin_runs_made", trigger="hand") == 2
    assert value(families, "rejoin_runs_started") == 2
    assert value(families, "rejoin_runs_ended", state="succeeded") == 1
    assert value(families, "rejoin_runs_ended", state="failed") == 1
    events = server.events()
    assert value(families, "rejoin_events") == len(events)
    assert value(families, "rejoin_task_stream_head", task="elsewhere") == events[-1]["seq"]
    assert value(families, "rejoin_task_last_run_succeeded", task="elsewhere") == 0


def test_every_family_has_a_type_and_help_and_every_histogram_adds_up(server: Server) -> None:
    with server.client() as client, client.run("elsewhere") as run:
        run.thought("one")
    families = scrape(server)
    assert {family.type for family in families.values()} == {"counter", "gauge", "histogram"}
    for family in families.values():
        assert family.documentation.endswith("."), family
        if family.type != "histogram":
            continue
        buckets = [sample for sample in family.samples if sample.name.endswith("_bucket")]
        bounds = [float(sample.labels["le"]) for sample in buckets]
        assert bounds == sorted(set(bounds))
        assert bounds[-1] == math.inf
        counts = [sample.value for sample in buckets]
        assert counts == sorted(counts), family
        rest = {sample.name: sample.value for sample in family.samples if sample not in buckets}
        assert rest.keys() == {f"{family.name}_sum", f"{family.name}_count"}
        assert rest[f"{family.name}_count"] == counts[-1]
