"""lm-eval's `local-completions` on a running server against its own `hf` model on the same weights:
ADDRESS MODEL [QUESTIONS].

MODEL is a Hugging Face folder or a GGUF file. Needs `pip install lm_eval[api] accelerate transformers torch
gguf`. The task is made from `tests/data/pride.txt`: which of four pieces of text goes on from the words before.
"""

import json
import pathlib
import random
import sys
import tempfile
import urllib.request

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

address, path = sys.argv[1], pathlib.Path(sys.argv[2])
words = (pathlib.Path(__file__).parents[1] / "data/pride.txt").read_text().split()
choose = random.Random(1)
places = choose.sample(range(60, len(words) - 8), int((sys.argv[3:] or [200])[0]))


def piece(place):
    return " ".join(words[place : place + 6])


questions = []
for place in places:
    choices = [piece(place)] + [piece(choose.randrange(len(words) - 8)) for _ in range(3)]
    order = choose.sample(range(4), 4)
    context = " ".join(words[place - 40 : place])
    questions.append(
        {"context": context, "choices": [choices[i] for i in order], "right": order.index(0)}
    )

folder = pathlib.Path(tempfile.mkdtemp())
(folder / "pride.jsonl").write_text("\n".join(json.dumps(question) for question in questions))
(folder / "pride.yaml").write_text(
    f"""
task: pride
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/pride.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: right
metric_list: [{{metric: acc}}]
"""
)
tasks = TaskManager(include_path=str(folder), include_defaults=False)


def scores(model, **arguments):
    results = lm_eval.simple_evaluate(
        model=model, tasks=["pride"], task_manager=tasks, log_samples=True, **arguments
    )
    samples = results["samples"]["pride"]
    pick = [[float(r[0][0]) for r in sample["resps"]] for sample in samples]
    return results["results"]["pride"]["acc,none"], pick


source = [path] if path.is_dir() else [path.parent, path.name]
source = dict(zip(["pretrained_model_name_or_path", "gguf_file"], source))
tokenizer = AutoTokenizer.from_pretrained(**source)
tokenizer.save_pretrained(folder / "tokenizer")
model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
name = json.load(urllib.request.urlopen(f"http://{address}/v1/models"))["data"][0]["id"]
served, ours = scores(
    "local-completions",
    model_args={
        "model": name,
        "base_url": f"http://{address}/v1/completions",
        "tokenizer": str(folder / "tokenizer"),
        "num_concurrent": 4,
        "max_retries": 1,
        "max_length": 512,
    },
)
wrapped = HFLM(pretrained=model, tokenizer=tokenizer, max_length=512, batch_size=8)
reference, theirs = scores(wrapped)
same = sum(
    max(range(4), key=a.__getitem__) == max(range(4), key=b.__getitem__)
    for a, b in zip(ours, theirs)
)
apart = sorted(abs(x - y) for a, b in zip(ours, theirs) for x, y in zip(a, b))
print(f"accuracy: served {served:.3f}, hf {reference:.3f}; same choice {same}/{len(ours)}")
print(f"log-likelihoods apart: median {apart[len(apart) // 2]:.3f}, most {apart[-1]:.3f}")
assert abs(served - reference) <= 0.02 and same >= 0.97 * len(ours)
