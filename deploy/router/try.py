#!/usr/bin/env python3
"""Two replicas behind a router, tried for real: streams, prefix caches, a killed replica, a draining one, a new one.

    pip install vllm-router
    deploy/router/try.py [--pleach target/release/pleach] [--router vllm-router | --router "sglang-router launch"]

Starts everything on free ports of this machine, prints what it sees, and ends with an error where a stream is lost
that should not be."""
import argparse
import concurrent.futures
import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--pleach", default="target/release/pleach", help="the server's program")
parser.add_argument("--router", default="vllm-router", help="the router's program, with a command of its own")
args = parser.parse_args()
router_command = args.router.split()
if not shutil.which(router_command[0]):
    sys.exit(f"{router_command[0]} is not installed: pip install {router_command[0]}")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(what, holds, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if holds():
                return
        except OSError:
            pass
        time.sleep(0.1)
    sys.exit(f"not within {seconds} s: {what}")


class Process:
    """A program on a port of its own."""

    def __init__(self, command, port):
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        self.child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=5) as response:
            return response.read().decode()

    def ready(self, path):
        until(f"{self.url}{path} answers", lambda: self.get(path) is not None)
        return self

    def metric(self, name):
        lines = [line for line in self.get("/metrics").splitlines() if line.startswith(name + "{")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines) if lines else None

    def end(self, how=signal.SIGKILL):
        self.child.send_signal(how)
        return self.child.wait(60)


def replica(port=None):
    port = port or free_port()
    command = [args.pleach, "--port", str(port), "--threads", "1", "--max-model-len", "2048",
               "--served-model-name", "any"]
    return Process(command, port)


def router(replicas, policy):
    port, metrics = free_port(), free_port()
    command = [*router_command, "--port", str(port), "--policy", policy, "--worker-urls", *(it.url for it in replicas),
               "--prometheus-port", str(metrics), "--health-check-interval-secs", "1", "--health-failure-threshold", "1",
               "--health-check-endpoint", "/ready", "--cb-failure-threshold", "1",
               "--cb-timeout-duration-secs", "2", "--cb-success-threshold", "1"]
    return Process(command, port).ready("/health")


def ask(base, messages, tokens=32, stream=False, pieces=None):
    """The answer's text; None where it broke off. `pieces` grows as a stream arrives."""
    body = {"model": "any", "messages": messages, "max_tokens": tokens, "temperature": 0, "stream": stream}
    request = urllib.request.Request(base.url + "/v1/chat/completions", json.dumps(body).encode(),
                                     {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            if not stream:
                return json.load(response)["choices"][0]["message"]["content"]
            text, whole = "", False
            for line in response:
                data = line.decode().strip().removeprefix("data: ")
                whole |= data == "[DONE]"
                if data.startswith("{"):
                    chunk = json.loads(data)
                    if "error" in chunk:
                        return None
                    for choice in chunk["choices"]:
                        text += choice["delta"].get("content") or ""
                        if pieces is not None:
                            pieces.append(1)
            return text if whole else None
    except OSError:
        return None
    except Exception as error:  # a connection cut in the middle of a chunk
        return None if "IncompleteRead" in type(error).__name__ else sys.exit(repr(error))


def user(text):
    return [{"role": "user", "content": text}]


def streams_while(front, replicas, happens, count=8):
    """Runs streams, lets something happen once all have begun; their texts, and how many ran on each replica."""
    pieces = [[] for _ in range(count)]
    prompts = [user(f"Write a long story about the number {n}.") for n in range(count)]
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        texts = [pool.submit(ask, front, p, 300, True, mine) for p, mine in zip(prompts, pieces)]
        running = []
        def begun():
            running[:] = [int(it.metric("pleach_running_sequences") or 0) for it in replicas]
            return all(pieces) and sum(running) == count
        until("all streams run", begun)
        happens()
        return [text.result() for text in texts], running


def prefix_hits(policy):
    """Share of the prompt tokens found in a prefix cache, over long conversations that take turns."""
    pair = [replica().ready("/ready") for _ in range(2)]
    front = router(pair, policy)
    talks = [[{"role": "system", "content": f"You are clerk {n}. " + f"Rule {n}: be brief and kind. " * 40}] for n in range(5)]
    for turn in range(3):
        for n, talk in enumerate(talks):
            talk += user(f"Question {turn} of client {n}: what is {n} plus {turn}?")
            talk.append({"role": "assistant", "content": ask(front, talk)})
    sums = [sum(it.metric(f"pleach_prefix_cache_{what}_total") or 0 for it in pair) for what in ("hits", "queries")]
    for process in (front, *pair):
        process.end()
    return f"{sums[0] / sums[1]:.0%} of {sums[1]:.0f} prompt tokens" if sums[1] else "this build has no prefix cache"


processes = []
try:
    pair = [replica(), replica()]
    processes += pair
    [it.ready("/ready") for it in pair]
    front = router(pair, "cache_aware")
    processes.append(front)

    direct, through = (ask(base, user("Why is the sky blue?"), 64, True) for base in (pair[0], front))
    assert through and through == direct, (through, direct)
    print("streams pass through, with the same text")

    texts, running = streams_while(front, pair, lambda: pair[0].end())
    lost = texts.count(None)
    print(f"a replica killed under 8 streams ({running[0]} on it, {running[1]} on the other): {lost} lost")
    assert lost <= running[0], "another replica's stream was lost"
    answered = [ask(front, user(f"Say {n}.")) for n in range(6)]
    print(f"after it: {6 - answered.count(None)} of 6 requests answered")
    assert None not in answered

    pair[0] = replica(pair[0].port).ready("/ready")
    processes.append(pair[0])
    def taken_in():
        # Prompts that begin alike would stay where the first one went.
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: ask(front, user(f"{random.random()} {n}, say hello."), 8), range(8)))
        return (pair[0].metric("pleach_prompt_tokens_total") or 0) > 0
    began = time.monotonic()
    until("the new replica gets requests", taken_in)
    print(f"a new replica in its place is taken in, after {time.monotonic() - began:.0f} s")

    code = []
    texts, running = streams_while(front, pair, lambda: code.append(pair[0].end(signal.SIGTERM)))
    print(f"a replica drained under 8 streams ({running[0]} on it): {texts.count(None)} lost, exit code {code[0]}")
    assert None not in texts and code == [0]
    answered = [ask(front, user(f"Say {n} again.")) for n in range(6)]
    print(f"after it: {6 - answered.count(None)} of 6 requests answered")
    assert None not in answered
    for process in processes:
        process.child.kill()
    for policy in ("cache_aware", "round_robin"):
        print(f"prefix cache hits, {policy}: {prefix_hits(policy)}")
finally:
    for process in processes:
        process.child.kill()
