#!/usr/bin/env python3
"""Runs every query of the dashboard against a Prometheus that scrapes pleach, and shows what each
returns: check.py [http://localhost:9090]. Fails where a query is refused or has no data."""
import json
import pathlib
import sys
import urllib.error
import urllib.parse
import urllib.request

base = (sys.argv[1:] or ["http://localhost:9090"])[0].rstrip("/")
board = json.loads((pathlib.Path(__file__).parent / "dashboards/pleach.json").read_text())
empty = 0
for panel in board["panels"]:
    for target in panel.get("targets", []):
        query = target["expr"].replace("$__rate_interval", "1m")
        for variable in board["templating"]["list"]:
            query = query.replace(f"${variable['name']}", ".*")
        url = f"{base}/api/v1/query?" + urllib.parse.urlencode({"query": query})
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                result = json.load(response)["data"]["result"]
        except urllib.error.HTTPError as error:
            sys.exit(f"{panel['title']}: {json.load(error)['error']}\n{query}")
        name = f"{panel['title']} / {target['legendFormat']}"
        values = [(list(series["metric"].values()), float(series["value"][1])) for series in result]
        # NaN is 0 / 0: nothing happened in the window.
        filled = [(labels, value) for labels, value in values if value == value]
        empty += not filled
        print(f"{name:60}", ", ".join(f"{' '.join(labels)} {value:.4g}".strip() for labels, value in filled) or "NO DATA")
sys.exit(f"{empty} queries without data" if empty else 0)
