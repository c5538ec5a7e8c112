"""The official Python client against a running server: BASE_URL DRAFTS(yes|no)."""

import sys
from concurrent.futures import ThreadPoolExecutor

import openai

base_url, drafts = sys.argv[1:]
client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)
model = client.models.list().data[0].id

# Streamed and whole answers carry the same text.
question = [{"role": "user", "content": "Why is the sky blue?"}]
stream = client.chat.completions.create(
    model=model,
    messages=question,
    temperature=0,
    max_tokens=40,
    stream=True,
    stream_options={"include_usage": True},
)
pieces, usage = [], None
for chunk in stream:
    if chunk.choices and chunk.choices[0].delta.content:
        pieces.append(chunk.choices[0].delta.content)
    usage = chunk.usage or usage
assert len(pieces) > 3, pieces
whole = client.chat.completions.create(
    model=model, messages=question, temperature=0, max_completion_tokens=40
)
assert "".join(pieces) == whole.choices[0].message.content
assert usage.completion_tokens == whole.usage.completion_tokens == 40
assert whole.choices[0].finish_reason == "length"

# Speculation on and off, alone and eight at a time: the same tokens.
prompts = [
    "Write two sentences about mushrooms.",
    "How many legs do three spiders have?",
    "Translate to German: The train is late.",
    "List four kitchen tools.",
    "Explain gravity to a child.",
    "def fibonacci(n):",
    "Who was Ada Lovelace?",
    "Give me a title for a story about a lighthouse.",
]


def ask(prompt, gamma):
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": prompt}],
        temperature=0,
        max_tokens=48,
        extra_body={"num_speculative_tokens": gamma},
    )
    return answer.choices[0].message.content, answer.usage.model_extra["pleach"]["drafts"]


alone = [ask(prompt, 0) for prompt in prompts]
assert all(count == 0 for _, count in alone)
drafted = [ask(prompt, 4) for prompt in prompts]
assert [text for text, _ in drafted] == [text for text, _ in alone]
assert (sum(count for _, count in drafted) > 0) == (drafts == "yes")
with ThreadPoolExecutor(8) as pool:
    together = list(pool.map(lambda prompt: ask(prompt, 4), prompts))
assert [text for text, _ in together] == [text for text, _ in alone]

# Log-probabilities, several choices, stop strings, sampling, completions.
answer = client.chat.completions.create(
    model=model,
    messages=question,
    max_tokens=5,
    n=2,
    seed=3,
    temperature=0.8,
    top_p=0.9,
    logprobs=True,
    top_logprobs=3,
    stop=["\n\n\n"],
    presence_penalty=0.1,
)
assert len(answer.choices) == 2
assert all(len(c.logprobs.content[0].top_logprobs) == 3 for c in answer.choices)
text = client.completions.create(
    model=model, prompt="The capital of France is", max_tokens=3, temperature=0
)
assert text.choices[0].text.startswith(" Paris")

# Errors arrive as the client's own exceptions.
try:
    client.chat.completions.create(model=model, messages=question, temperature=-1)
    raise AssertionError("a negative temperature was taken")
except openai.BadRequestError as error:
    assert error.param == "temperature", error
print("python client: ok")
