"""Many clients at once against one server, with lengths and shared beginnings from a trace. Standard library alone.

    python3 benches/load.py [--connections 1000] [--running 64] [--queue 256] [--seconds 600] [--trace FILE.jsonl]

starts target/release/pleach with room for `--running` sequences and `--queue` waiting ones, and keeps
`--connections` clients busy: each asks, reads its stream to the end, and asks again; a 429 is waited out as its
Retry-After says. A line of the trace has `input_tokens` and `output_tokens`, and perhaps `hash_ids` (one for each
512 tokens of the prompt: equal ids are equal text); without a trace, lengths are drawn from a log-normal
distribution. All lengths are multiplied by `--scale`.

Ends with 1 if any answer was neither whole nor a 429 with Retry-After, if the server's memory grew by more than a
tenth after the first third of the time, or if the 99th percentile of the time to the first token exceeds twice what
the places before a newcomer take at the pace that was measured.
"""

import argparse
import asyncio
import json
import random
import resource
import subprocess
import sys
import threading
import time
import urllib.request
from urllib.parse import urlsplit

parser = argparse.ArgumentParser()
parser.add_argument("--connections", type=int, default=1000)
parser.add_argument("--running", type=int, default=64)
parser.add_argument("--queue", type=int, default=256)
parser.add_argument("--seconds", type=float, default=600)
parser.add_argument("--trace")
parser.add_argument("--scale", type=float, default=1 / 16, help="all lengths are multiplied by this")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--server", default="target/release/pleach", help="the program to start")
parser.add_argument("--argument", action="append", default=[], help="one more argument of the server")
parser.add_argument("--json", help="write the figures here")
options = parser.parse_args()

BLOCK = 512  # tokens that one of a trace's hash_ids stands for
FIRST_ID, LAST_ID = 1000, 40000  # token ids to make texts of: no special ones
LONGEST = 1500  # tokens of a prompt, at most

rng = random.Random(options.seed)
entries = []
if options.trace:
    with open(options.trace) as file:
        entries = [json.loads(line) for line in file]

counts = {"whole": 0, "busy": 0, "failed": 0, "prompt_tokens": 0, "tokens": 0}
first_token, waits, failures, memory = [], [], [], []


def scaled(tokens, most):
    return max(1, min(round(tokens * options.scale), most))


def draw():
    """A prompt's token ids, and a number of tokens to generate."""
    if not entries:
        length, output = rng.lognormvariate(6.5, 1), rng.lognormvariate(5, 1)
        return [rng.randrange(FIRST_ID, LAST_ID) for _ in range(scaled(length, LONGEST))], scaled(output, 256)
    entry = rng.choice(entries)
    length = scaled(entry["input_tokens"], LONGEST)
    block = max(1, round(BLOCK * options.scale))
    prompt = []
    for number in entry.get("hash_ids", []):
        text = random.Random(number)
        prompt += [text.randrange(FIRST_ID, LAST_ID) for _ in range(block)]
        if len(prompt) >= length:
            break
    prompt = prompt[:length]
    prompt += [rng.randrange(FIRST_ID, LAST_ID) for _ in range(length - len(prompt))]
    return prompt, scaled(entry["output_tokens"], 256)


async def ask(host, port):
    """One request; the seconds to wait before the next."""
    prompt, output = draw()
    body = json.dumps({"prompt": prompt, "max_tokens": output, "ignore_eos": True, "stream": True}).encode()
    started = time.monotonic()
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
                     b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        status = int(head.split()[1])
        if status == 429 and "retry-after: " in head:
            counts["busy"] += 1
            seconds = int(head.split("retry-after: ")[1].split()[0])
            waits.append(seconds)
            return seconds
        end, first = b"", None
        while part := await reader.read(65536):
            if first is None and b"data: " in part:
                first = time.monotonic() - started
            end = (end + part)[-200:]
        if status != 200 or b"data: [DONE]" not in end:
            raise RuntimeError(f"{status}: {end!r}")
        counts["whole"] += 1
        counts["prompt_tokens"] += len(prompt)
        counts["tokens"] += output
        first_token.append(first)
        return 0
    finally:
        writer.close()


async def client(host, port, end):
    await asyncio.sleep(rng.random())
    while time.monotonic() < end:
        try:
            pause = await ask(host, port) * (1 + rng.random())
        except Exception as error:  # whatever it was, it was not an answer
            counts["failed"] += 1
            failures.append(repr(error))
            pause = 1
        await asyncio.sleep(min(pause, max(0, end - time.monotonic())))


async def watch(pid, started):
    while True:
        with open(f"/proc/{pid}/status") as file:
            line = next(line for line in file if line.startswith("VmRSS"))
        memory.append((time.monotonic() - started, int(line.split()[1]) / 1024))
        await asyncio.sleep(2)


async def load(address, pid):
    started = time.monotonic()
    end = started + options.seconds
    watcher = asyncio.create_task(watch(pid, started))
    url = urlsplit(address)
    await asyncio.gather(*(client(url.hostname, url.port, end) for _ in range(options.connections)))
    watcher.cancel()
    return time.monotonic() - started


def start():
    """The server, and its address once it is ready."""
    command = [options.server, "--port", "0", "--max-num-seqs", str(options.running), "--max-queue",
               str(options.queue), *options.argument]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if " is ready at " in line:
            address = line.split(" is ready at ")[1].split(". ")[0]
            # Keeps the pipe empty.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return process, address
    sys.exit("the server did not start")


def percentile(values, percent):
    return round(sorted(values)[min(len(values) - 1, len(values) * percent // 100)], 2) if values else None


def main():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 2 * options.connections + 100)), hard))
    process, address = start()
    try:
        seconds = asyncio.run(load(address, process.pid))
        metrics = urllib.request.urlopen(address + "/metrics").read().decode()
    finally:
        process.terminate()
        status = process.wait()
    value = {line.split("{")[0]: float(line.rsplit(" ", 1)[1])
             for line in metrics.splitlines() if line.startswith("pleach_")}
    bound = (options.running + options.queue) / max(counts["whole"] / seconds, 1e-9)
    third = [megabytes for at, megabytes in memory if options.seconds / 3 <= at <= options.seconds]
    figures = {
        **counts,
        "seconds": round(seconds, 1),
        "tokens_per_second": round(counts["tokens"] / seconds, 1),
        "time_to_first_token": {p: percentile(first_token, p) for p in (50, 95, 99)},
        "seconds_through_all_places": round(bound, 1),
        "retry_after": {"least": min(waits, default=None), "median": percentile(waits, 50),
                        "most": max(waits, default=None)},
        "megabytes": {"after_a_third": round(third[0]), "most_after": round(max(third)), "end": round(third[-1])},
        "prefix_cache_hit_share": round(value["pleach_prefix_cache_hits_total"]
                                        / max(value["pleach_prefix_cache_queries_total"], 1), 3),
        "preemptions": value["pleach_preemptions_total"],
        "blocks_in_use_at_the_end": value["pleach_kv_cache_used_blocks"],
        "exit_status": status,
        "failures": failures[:5],
    }
    print(json.dumps(figures, indent=1))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(figures, file, indent=1)
    wrong = [name for name, holds in [
        ("answers failed", counts["failed"] == 0 and counts["whole"] > 0),
        ("memory grew", max(third) <= 1.1 * third[0]),
        ("the first token is late", figures["time_to_first_token"][99] <= 2 * bound),
        ("the server did not end well", status == 0),
        ("blocks are lost", value["pleach_kv_cache_used_blocks"] == 0)] if not holds]
    sys.exit("; ".join(wrong) or 0)


main()
