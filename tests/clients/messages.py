"""/v1/messages through the official anthropic package, /v1/responses through openai's: ADDRESS."""

import json
import sys

import anthropic
import openai

address = sys.argv[1]
claude = anthropic.Anthropic(base_url=f"http://{address}", api_key="none", max_retries=0)
client = openai.OpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0)
model = client.models.list().data[0].id

system = "You are a helpful assistant."
question = "Why is the sky blue?"
chat = client.chat.completions.create(
    model=model,
    messages=[{"role": "system", "content": system}, {"role": "user", "content": question}],
    temperature=0,
    max_tokens=30,
)
text = chat.choices[0].message.content

# Anthropic: whole and streamed, the same text as the chat's.
arguments = dict(
    model=model,
    max_tokens=30,
    extra_body={"temperature": 0},
    system=system,
    messages=[{"role": "user", "content": [{"type": "text", "text": question}]}],
)
message = claude.messages.create(**arguments)
assert message.content[0].text == text, message
assert message.stop_reason == "max_tokens" and message.role == "assistant"
assert message.usage.input_tokens + message.usage.cache_read_input_tokens == chat.usage.prompt_tokens
assert message.usage.output_tokens == 30
counted = claude.messages.count_tokens(
    model=model, system=system, messages=arguments["messages"]
)
assert counted.input_tokens == chat.usage.prompt_tokens
with claude.messages.stream(**arguments) as stream:
    pieces = list(stream.text_stream)
    final = stream.get_final_message()
assert len(pieces) > 3 and "".join(pieces) == text
assert final.content[0].text == text and final.stop_reason == "max_tokens"
assert final.usage.output_tokens == 30
stop = text[10:14]
stopped = claude.messages.create(**arguments, stop_sequences=["never said", stop])
assert stopped.content[0].text == text.split(stop)[0]
assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", stop)
# A call, whole and streamed, and its result.
numbers = {name: {"type": "integer", "minimum": 0, "maximum": 99} for name in ["a", "b"]}
schema = {"type": "object", "properties": numbers, "required": ["a", "b"]}
asked = dict(
    model=model,
    max_tokens=60,
    extra_body={"temperature": 0},
    tools=[{"name": "add", "description": "Adds", "input_schema": schema}],
    tool_choice={"type": "tool", "name": "add"},
    messages=[{"role": "user", "content": "What is 2 + 3?"}],
)
called = claude.messages.create(**asked)
(call,) = called.content
assert (call.type, call.name, called.stop_reason) == ("tool_use", "add", "tool_use"), called
assert set(call.input) == {"a", "b"}
with claude.messages.stream(**asked) as stream:
    final = stream.get_final_message()
assert final.content[0].input == call.input and final.stop_reason == "tool_use"
asked["messages"] += [
    {"role": "assistant", "content": called.content},
    {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "5"}],
    },
]
assert claude.messages.create(**{**asked, "tool_choice": {"type": "none"}}).content[0].text
for wrong, field in [
    ({"temperature": -1}, "temperature"),
    ({"stop_sequences": [""]}, "stop_sequences"),
]:
    try:
        claude.messages.create(**{**arguments, "extra_body": wrong})
        raise AssertionError(f"{wrong} was taken")
    except anthropic.BadRequestError as error:
        assert error.body["type"] == "error", error.body
        assert error.body["error"]["type"] == "invalid_request_error"
        assert field in error.body["error"]["message"], error.body

# OpenAI's responses.
arguments = dict(model=model, temperature=0, max_output_tokens=30, instructions=system)
response = client.responses.create(input=question, **arguments)
assert response.output_text == text, response
assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
assert response.usage.output_tokens == 30 and response.usage.input_tokens == chat.usage.prompt_tokens
events = list(client.responses.create(input=question, stream=True, **arguments))
assert [event.sequence_number for event in events] == list(range(len(events)))
assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == text
assert events[0].type == "response.created" and events[-1].type == "response.incomplete"
turns = [
    {"role": "user", "content": "Say hello."},
    {"role": "assistant", "content": [{"type": "output_text", "text": "Hello!", "annotations": []}]},
    {"role": "user", "content": [{"type": "input_text", "text": "What is 2 + 2?"}]},
]
with client.responses.stream(model=model, input=turns, temperature=0) as stream:
    deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
    final = stream.get_final_response()
assert final.status == "completed" and final.output_text == "".join(deltas)
# Calls, whole and streamed, and their results; JSON.
properties = {name: {"type": "integer", "minimum": 0, "maximum": 99} for name in ["a", "b"]}
parameters = {"type": "object", "properties": properties, "required": ["a", "b"]}
tool = {"type": "function", "name": "add", "parameters": parameters}
asked = dict(model=model, temperature=0, tools=[tool], tool_choice={"type": "function", "name": "add"})
turns = [{"role": "user", "content": "What is 2 + 3?"}]
response = client.responses.create(input=turns, **asked)
(call,) = response.output
assert (call.type, call.name, response.status) == ("function_call", "add", "completed"), response
assert set(json.loads(call.arguments)) == {"a", "b"}
events = list(client.responses.create(input=turns, stream=True, **asked))
kinds = [event.type for event in events]
deltas = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
assert "".join(deltas) == call.arguments and len(deltas) > 1
assert kinds[2] == "response.output_item.added" and kinds[-1] == "response.completed"
assert events[-1].response.output[0].arguments == call.arguments
turns += [
    call.model_dump(exclude_none=True),
    {"type": "function_call_output", "call_id": call.call_id, "output": "5"},
]
asked["tool_choice"] = "none"
assert client.responses.create(input=turns, max_output_tokens=8, **asked).output_text
schema = {"type": "object", "properties": properties, "required": ["a"], "additionalProperties": False}
format = {"type": "json_schema", "name": "numbers", "schema": schema, "strict": True}
response = client.responses.create(
    model=model, temperature=0, input="Two numbers.", text={"format": format}
)
assert "a" in json.loads(response.output_text), response
for wrong, field in [({"store": True}, "store"), ({"tools": [{"type": "web_search"}]}, "tools")]:
    try:
        client.responses.create(input=question, **arguments, **wrong)
        raise AssertionError(f"{wrong} was taken")
    except openai.BadRequestError as error:
        assert error.param == field, error
print("messages and responses: ok")
