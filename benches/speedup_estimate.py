#!/usr/bin/env python3
"""Holds the server's own estimate of its speed-up against the truth: two servers, one that speculates and one that
does not, answer the same prompts in turns, and the ratio of their times is compared with /metrics.

    benches/speedup_estimate.py [--pleach target/release/pleach] [--prompts 16] [--max-tokens 128]

Run it on an otherwise idle machine. Ends with an error where the two differ by more than a tenth."""
import argparse
import json
import pathlib
import socket
import subprocess
import sys
import time
import urllib.request

root = pathlib.Path(__file__).parent.parent
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--pleach", default=root / "target/release/pleach")
parser.add_argument("--prompts", type=int, default=16)
parser.add_argument("--max-tokens", type=int, default=128)
args = parser.parse_args()


def start(*flags):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [args.pleach, "--port", str(port), "--max-model-len", "2048", *flags]
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            urllib.request.urlopen(url + "/ready").close()
            return child, url
        except OSError:
            time.sleep(0.1)
    sys.exit("the server does not start")


def answer(url, prompt):
    """The answer's text, and seconds from its first token to its last."""
    body = {"messages": [{"role": "user", "content": prompt}], "temperature": 0, "stream": True, "max_tokens": args.max_tokens}
    request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode())
    text, times = "", []
    with urllib.request.urlopen(request) as response:
        for line in response:
            if line.startswith(b"data: {"):
                piece = json.loads(line[6:])["choices"][0]["delta"].get("content")
                if piece:
                    text += piece
                    times.append(time.perf_counter())
    return text, times[-1] - times[0]


def estimate(url):
    page = urllib.request.urlopen(url + "/metrics").read().decode()
    value = lambda name: next(float(l.rsplit(" ", 1)[1]) for l in page.splitlines() if l.startswith(name + "{"))
    return value("pleach_decode_step_without_speculation_seconds_sum") / value("pleach_decode_step_seconds_sum")


lines = (root / "tools/data/valid.jsonl").read_text().splitlines()
prompts = [json.loads(line)["turns"][0] for line in lines[:: max(1, len(lines) // args.prompts)]]
servers = [start("--no-speculation"), start()]
try:
    spent = [0.0, 0.0]
    for number, prompt in enumerate(prompts):
        texts = {}
        for which in (0, 1) if number % 2 else (1, 0):
            texts[which], seconds = answer(servers[which][1], prompt)
            spent[which] += seconds
        assert texts[0] == texts[1], "the texts differ"
    measured, estimated = spent[0] / spent[1], estimate(servers[1][1])
finally:
    for child, _ in servers:
        child.kill()
print(f"{len(prompts)} answers: measured {measured:.3f}, estimated {estimated:.3f}, {estimated / measured - 1:+.1%}")
sys.exit(abs(estimated / measured - 1) > 0.1)
