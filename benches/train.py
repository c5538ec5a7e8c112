"""Fine-tuning beside PyTorch: the same model, answers, batches, loss and threads, in turns.

    python3 -m venv venv && venv/bin/pip install torch transformers
    cargo build --release --workspace
    venv/bin/python benches/train.py --model paper/pruned --data paper/self-data.jsonl [--json OUT]

Run it on an otherwise idle machine. What is trained is what `pleach-tools build --recipe paper` trains: LoRA of rank 16
on all matrices of the blocks, cross-entropy of the answers' tokens over the whole head, 2 batches of at most 1,024 tokens
in a step. Every engine goes once through the same answers in each of --repeats rounds; figures are medians, without the
first step of a round. Positions are prompts and answers, at the rate of the answers' tokens. PyTorch gets what makes it
fast: answers stand side by side without padding, attention runs on each alone, the head on the answers' tokens alone.
`torch` keeps the frozen weights in f32 and computes in bf16 (autocast), `torch bf16` keeps them in bf16.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time

RANK, ALPHA, RATE = 16, 32.0, 5e-4
ROWS, ACCUMULATION = 1024, 2


def answers(path, limit):
    """Tokens of prompt and answer, and how many of them are the prompt's; spread over the file."""
    with open(path) as file:
        lines = [json.loads(line) for line in file if line.strip()]
    lines = [lines[i * len(lines) // limit] for i in range(limit)] if limit < len(lines) else lines
    return lines


def packs(sequences, number):
    """Batches of whole sequences of at most ROWS inputs, in an order of their own."""
    order = list(sequences)
    random.Random(number).shuffle(order)
    groups, used = [[]], 0
    for tokens, prompt in order:
        rows = len(tokens) - 1
        if used + rows > ROWS and used:
            groups.append([])
            used = 0
        used += rows
        groups[-1].append((tokens, prompt))
    return groups


class Torch:
    """PyTorch in a process of its own, spoken to in lines of JSON."""

    def __init__(self, model, data, threads, base):
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", json.dumps([model, data, threads, base])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.receive()

    def receive(self):
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)["result"]
        raise RuntimeError("PyTorch ended")

    def epoch(self):
        """Answer tokens a second behind the first step, and the mean loss of that and of all."""
        print("epoch", file=self.process.stdin, flush=True)
        return self.receive()

    def close(self):
        self.process.kill()
        self.process.wait()


class Pleach:
    def __init__(self, model, data, threads):
        here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        self.command = [f"{here}/target/release/pleach-tools", "train", "--model", model]
        self.command += ["--data", data, "--threads", str(threads), "--epochs", "1"]
        self.command += ["--loss", "ce", "--lora-rank", str(RANK), "--lora-alpha", str(ALPHA)]
        self.command += ["--draft-vocab", "1000000000", "--learning-rate", str(RATE)]
        self.command += ["--warmup", "0", "--weight-decay", "0", "--validation", "0"]
        self.command += ["--batch-tokens", str(ROWS), "--accumulation", str(ACCUMULATION)]
        self.command += ["--round-to", "none", "--checkpoint-seconds", "1000000"]

    def epoch(self):
        with tempfile.TemporaryDirectory() as out:
            subprocess.run([*self.command, "--out", out], check=True, capture_output=True)
            with open(f"{out}/history.jsonl") as file:
                points = [json.loads(line) for line in file]
        tokens = [b["tokens"] - a["tokens"] for a, b in zip([{"tokens": 0}, *points], points)]
        total = sum(point["loss"] * count for point, count in zip(points, tokens))
        first, last = points[0], points[-1]
        rate = (last["tokens"] - first["tokens"]) / (last["seconds"] - first["seconds"])
        return rate, first["loss"], total / last["tokens"]

    def close(self):
        pass


def worker(model, data, threads, base):
    import torch
    import torch.nn.functional as F
    from transformers import AttentionInterface, AutoModelForCausalLM

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    bounds = []

    def by_sequence(module, query, key, value, _mask, scaling, **_):
        groups = query.shape[1] // key.shape[1]
        out = []
        for start, end in bounds:
            k, v = (x[:, :, start:end].repeat_interleave(groups, 1) for x in (key, value))
            q = query[:, :, start:end]
            one = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
            out.append(one.transpose(1, 2))
        return torch.cat(out, 1), None

    AttentionInterface.register("by_sequence", by_sequence)
    network = AutoModelForCausalLM.from_pretrained(
        model, dtype=getattr(torch, base), attn_implementation="by_sequence"
    )
    network.requires_grad_(False)

    class Lora(torch.nn.Module):
        def __init__(self, frozen):
            super().__init__()
            self.frozen = frozen
            bound = (3.0 / frozen.in_features) ** 0.5
            self.a = torch.nn.Parameter(torch.empty(RANK, frozen.in_features).uniform_(-bound, bound))
            self.b = torch.nn.Parameter(torch.zeros(frozen.out_features, RANK))

        def forward(self, x):
            return self.frozen(x) + F.linear(F.linear(x, self.a), self.b) * (ALPHA / RANK)

    for name, module in list(network.model.layers.named_modules()):
        if isinstance(module, torch.nn.Linear):
            parent, _, own = name.rpartition(".")
            setattr(network.model.layers.get_submodule(parent), own, Lora(module))
    start = {n: p.detach().clone() for n, p in network.named_parameters() if p.requires_grad}
    trained = [p for p in network.parameters() if p.requires_grad]
    with open(data) as file:
        lines = [json.loads(line) for line in file]
    sequences = [(d["prompt_tokens"] + d["response_tokens"], len(d["prompt_tokens"])) for d in lines]

    def backward(pack):
        """The sum of the losses of a batch, whose gradients are added."""
        bounds.clear()
        tokens, positions, rows, wanted = [], [], [], []
        for sequence, prompt in pack:
            at, length = len(tokens), len(sequence) - 1
            bounds.append((at, at + length))
            tokens += sequence[:-1]
            positions += range(length)
            rows += range(at + prompt - 1, at + length)
            wanted += sequence[prompt:]
        with torch.autocast("cpu", torch.bfloat16):
            hidden = network.model(
                input_ids=torch.tensor([tokens]),
                position_ids=torch.tensor([positions]),
                use_cache=False,
            ).last_hidden_state
            logits = network.lm_head(hidden[0, torch.tensor(rows)])
        loss = F.cross_entropy(logits.float(), torch.tensor(wanted), reduction="sum")
        loss.backward()
        return loss.item()

    def epoch(number):
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if name in start:
                    parameter.copy_(start[name])
        optimiser = torch.optim.AdamW(trained, RATE, (0.9, 0.95), 1e-8, 0.0, fused=True)
        groups, losses = packs(sequences, number), []
        for first in range(0, len(groups), ACCUMULATION):
            step = groups[first : first + ACCUMULATION]
            loss = sum(backward(pack) for pack in step)
            count = sum(len(tokens) - prompt for pack in step for tokens, prompt in pack)
            for parameter in trained:
                parameter.grad.div_(count)
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()
            optimiser.zero_grad()
            losses.append((loss, count))
            if first == 0:
                started = time.monotonic()
        seconds = time.monotonic() - started
        rate = sum(count for _, count in losses[1:]) / seconds
        mean = sum(loss for loss, _ in losses) / sum(count for _, count in losses)
        return rate, losses[0][0] / losses[0][1], mean

    print(json.dumps({"result": "ready"}), flush=True)
    for number, _ in enumerate(sys.stdin):
        print(json.dumps({"result": epoch(number)}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="the pruned model, a Hugging Face folder")
    parser.add_argument("--data", help="answers of `pleach-tools generate`")
    parser.add_argument("--answers", type=int, default=64, help="answers of a round, spread over the file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", help="engines, separated by commas")
    parser.add_argument("--json", help="where the result goes")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(*json.loads(args.worker))
    chosen = answers(args.data, args.answers)
    positions = sum(len(d["prompt_tokens"]) + len(d["response_tokens"]) - 1 for d in chosen)
    tokens = sum(len(d["response_tokens"]) for d in chosen)
    with tempfile.TemporaryDirectory() as folder:
        data = f"{folder}/answers.jsonl"
        with open(data, "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in chosen)
        every = {
            "pleach": lambda: Pleach(args.model, data, args.threads),
            "torch": lambda: Torch(args.model, data, args.threads, "float32"),
            "torch bf16": lambda: Torch(args.model, data, args.threads, "bfloat16"),
        }
        running = {}
        try:
            for name, start in every.items():
                if not args.only or name in args.only.split(","):
                    running[name] = start()
            rounds = {name: [] for name in running}
            for _ in range(args.repeats):
                for name, engine in running.items():
                    rounds[name].append(engine.epoch())
        finally:
            for engine in running.values():
                engine.close()
    report = {"threads": args.threads, "answers": len(chosen), "engines": {}}
    print(f"{len(chosen)} answers of {tokens} tokens, {positions} positions; {args.threads} threads")
    print(f"{'':<12}{'answer tokens/s':>16}{'positions/s':>13}{'first loss':>12}{'mean loss':>12}")
    for name, values in rounds.items():
        rate, first, mean = (statistics.median(column) for column in zip(*values))
        rates = {"answer_tokens_per_s": rate, "positions_per_s": rate * positions / tokens}
        rounds_of = {"rounds": [value[0] for value in values]}
        report["engines"][name] = {**rates, **rounds_of, "first_loss": first, "mean_loss": mean}
        print(f"{name:<12}{rate:>16.1f}{rate * positions / tokens:>13.1f}{first:>12.4f}{mean:>12.4f}")
    rate = {name: engine["answer_tokens_per_s"] for name, engine in report["engines"].items()}
    if "pleach" in rate and len(rate) > 1:
        report["ratio"] = rate["pleach"] / max(rate[name] for name in rate if name != "pleach")
        print(f"pleach {report['ratio']:.2f} x PyTorch at its best")
    if args.json:
        with open(args.json, "w") as file:
            json.dump(report, file, indent=2)


if __name__ == "__main__":
    main()
