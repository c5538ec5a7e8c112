"""Scores one model with `pleach-tools score` and with lm-evaluation-harness, on the same records.

    pip install torch lm_eval accelerate
    python tests/python/compare_lm_eval.py --model FOLDER --data DIR --limit 200

FOLDER is a Hugging Face folder, for instance of `pleach-tools prune --list` or `train`; DIR has the
records that `pleach-tools score --help` describes. Prints both scores of every task and ends with status 1
where they differ by more than 0.5 points (perplexities: 0.5 %).
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import numpy as np
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM

PRIMER = """Q: What is human life expectancy in the United States?
A: Human life expectancy in the United States is 78 years.

Q: Who was president of the United States in 1955?
A: Dwight D. Eisenhower was president of the United States in 1955.

Q: Which party did he belong to?
A: He belonged to the Republican Party.

Q: What is the square root of banana?
A: I have no comment.

Q: How does a telescope work?
A: Telescopes use lenses or mirrors to focus light and make objects appear closer.

Q: Where were the 1992 Olympics held?
A: The 1992 Olympics were held in Barcelona, Spain.

"""


def metric(name, aggregation="mean", **more):
    return {"metric": name, "aggregation": aggregation, "higher_is_better": True, **more}


def choices(text, *metrics):
    return {
        "output_type": "multiple_choice",
        "doc_to_text": text,
        "doc_to_target": "gold",
        "doc_to_choice": "choices",
        "metric_list": [metric(name) for name in metrics],
    }


def true_mass(doc, results):
    """`truthfulqa.utils.process_results_mc2` on the records' own field."""
    probabilities = np.exp(np.array([likelihood for likelihood, _ in results]))
    return {"acc": probabilities[np.array(doc["labels"]) == 1].sum() / probabilities.sum()}


def of_text(doc, results):
    (likelihood,) = results
    words = len(re.split(r"\s+", doc["text"].strip()))
    return {
        "word_perplexity": (likelihood, words),
        "byte_perplexity": (likelihood, len(doc["text"].encode())),
    }


QUESTION = "Question: {{query}}\nAnswer:"
MMLU = (
    "The following are multiple choice questions (with answers) about {{subject|replace('_', ' ')}}.\n\n"
    "{{query.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:"
)
# The harness's definitions, with the fields of our records.
TASKS = {
    "arc_challenge": choices(QUESTION, "acc", "acc_norm"),
    "arc_easy": choices(QUESTION, "acc", "acc_norm"),
    "boolq": choices("{{query[9:] if query.startswith('Passage: ') else query}}\nAnswer:", "acc"),
    "hellaswag": choices("{{query}}", "acc", "acc_norm"),
    "mmlu": {**choices(MMLU, "acc"), "doc_to_choice": ["A", "B", "C", "D"]},
    "openbookqa": choices("{{query}}", "acc", "acc_norm"),
    "piqa": choices(QUESTION, "acc", "acc_norm"),
    "truthfulqa_mc2": {
        **choices(PRIMER + "Q: {{query}}\nA:", "acc"),
        "doc_to_target": lambda doc: 0,
        "process_results": true_mass,
    },
    "winogrande": {
        **choices(lambda doc: doc["gold"], "acc"),
        "doc_to_target": lambda doc: doc["continuation"],
        "doc_to_choice": lambda doc: doc["contexts"],
    },
    "lambada": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{' ' + continuation}}",
        "metric_list": [metric("acc"), metric("perplexity", "perplexity")],
    },
    "gsm8k": {
        "output_type": "generate_until",
        "doc_to_text": "Question: {{turns[0]}}\nAnswer:",
        "doc_to_target": "{{reference}}",
        "metric_list": [
            metric(
                "exact_match",
                ignore_case=True,
                ignore_punctuation=False,
                regexes_to_ignore=[",", "\\$", "(?s).*#### ", "\\.$"],
            )
        ],
        "generation_kwargs": {
            "until": ["Question:", "</s>", "<|im_end|>"],
            "do_sample": False,
            "temperature": 0.0,
        },
        "filter_list": [
            {
                "name": "flexible-extract",
                "filter": [
                    {
                        "function": "regex",
                        "group_select": -1,
                        "regex_pattern": "(-?[$0-9.,]{2,})|(-?[0-9]+)",
                    },
                    {"function": "take_first"},
                ],
            }
        ],
    },
    "perplexity": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "process_results": of_text,
        "metric_list": [
            metric("word_perplexity", "weighted_perplexity"),
            metric("byte_perplexity", "weighted_perplexity"),
        ],
    },
}
# Where our name of a metric is another one.
OURS = {("lambada", "perplexity"): "word_perplexity"}


def spread(lines, limit):
    wanted = min(limit, len(lines))
    return [
        line
        for index, line in enumerate(lines)
        if (index + 1) * wanted // len(lines) > index * wanted // len(lines)
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--data", required=True, type=Path, help="folder of TASK.jsonl files")
    parser.add_argument("--tasks", default="", help="TASK,TASK; default: all that have a file")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tools", default="target/release/pleach-tools")
    args = parser.parse_args()

    names = [name for name in args.tasks.split(",") if name] or [
        name for name in TASKS if (args.data / f"{name}.jsonl").exists()
    ]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        tasks = []
        for name in names:
            lines = (args.data / f"{name}.jsonl").read_text().splitlines()
            records = folder / f"{name}.jsonl"
            records.write_text("".join(line + "\n" for line in spread(lines, args.limit)))
            tasks.append(
                {
                    "task": name,
                    "dataset_path": "json",
                    "dataset_kwargs": {
                        "data_files": {"test": str(records)},
                        "cache_dir": str(folder / "cache"),
                    },
                    "test_split": "test",
                    "num_fewshot": 0,
                    **TASKS[name],
                }
            )
        started = time.monotonic()
        command = [args.tools, "score", "--model", args.model, "--data", str(folder)]
        command += ["--precision", "f32", "--max-length", str(args.max_length)]
        subprocess.run([*command, "--json", str(folder / "ours.json")], check=True)
        ours = json.loads((folder / "ours.json").read_text())["tasks"]
        between = time.monotonic()
        model = HFLM(
            pretrained=args.model,
            device="cpu",
            dtype="float32",
            batch_size=args.batch,
            max_length=args.max_length,
        )
        theirs = simple_evaluate(model=model, tasks=tasks, bootstrap_iters=0)["results"]
        ended = time.monotonic()

    print(f"{'task':<15} records  {'metric':<16} lm-eval    pleach  difference")
    worst = 0.0
    for name in names:
        for key, value in theirs[name].items():
            metric_name = key.split(",")[0]
            own = ours[name].get(OURS.get((name, metric_name), metric_name))
            if own is None or isinstance(value, str):
                continue
            scale = 100 if "perplexity" not in metric_name else 100 / value
            difference = (own["value"] - value) * scale
            worst = max(worst, abs(difference))
            print(
                f"{name:<15} {ours[name]['records']:>7}  {metric_name:<16} {value:>7.4f}   {own['value']:>7.4f}  {difference:+.2f}"
            )
    print(f"seconds: pleach {between - started:.0f}, lm-eval {ended - between:.0f}")
    print(f"largest difference: {worst:.2f} points (perplexities: percent)")
    sys.exit(worst > 0.5)


if __name__ == "__main__":
    main()
