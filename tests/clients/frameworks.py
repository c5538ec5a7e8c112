"""litellm, langchain-openai and instructor against a running server: BASE_URL."""

import asyncio
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import instructor
import litellm
import openai
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, ConfigDict, Field

base_url = sys.argv[1]
client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)
model = client.models.list().data[0].id
question = [{"role": "user", "content": "Why is the sky blue?"}]
expected = client.chat.completions.create(
    model=model, messages=question, temperature=0, max_tokens=24
)
expected = expected.choices[0].message.content


class Person(BaseModel):
    """A person."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=16)
    age: int = Field(ge=0, le=120)


class Sum(BaseModel):
    """Adds two numbers."""

    a: int = Field(ge=0, le=99)
    b: int = Field(ge=0, le=99)


# litellm: whole, streamed, 64 at once, tools, embeddings, errors.
common = dict(model=f"openai/{model}", api_base=base_url, api_key="none")
answer = litellm.completion(**common, messages=question, temperature=0, max_tokens=24)
assert answer.choices[0].message.content == expected, answer
stream = litellm.completion(
    **common, messages=question, temperature=0, max_tokens=24, stream=True
)
assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == expected


async def many():
    asks = [
        litellm.acompletion(**common, messages=question, temperature=0, max_tokens=24)
        for _ in range(64)
    ]
    return [answer.choices[0].message.content for answer in await asyncio.gather(*asks)]


assert asyncio.run(many()) == [expected] * 64
function = {"name": "add", "description": "Adds", "parameters": Sum.model_json_schema()}
answer = litellm.completion(
    **common,
    messages=[{"role": "user", "content": "What is 3 plus 4?"}],
    tools=[{"type": "function", "function": function}],
    tool_choice="required",
    parallel_tool_calls=False,
    temperature=0,
    max_tokens=80,
)
(call,) = answer.choices[0].message.tool_calls
assert call.function.name == "add" and answer.choices[0].finish_reason == "tool_calls"
Sum.model_validate_json(call.function.arguments)
embedded = litellm.embedding(**common, input=["one", "two"])
assert [len(entry["embedding"]) for entry in embedded.data] == [576, 576]
try:
    litellm.completion(**common, messages=question, temperature=-1)
    raise AssertionError("a negative temperature was taken")
except litellm.BadRequestError as error:
    assert "temperature" in str(error), error

# langchain-openai: whole, streamed, tools and their results, structured output, embeddings.
chat = ChatOpenAI(
    model=model, base_url=base_url, api_key="none", temperature=0, max_tokens=24, max_retries=0
)
assert chat.invoke("Why is the sky blue?").content == expected
assert "".join(chunk.content for chunk in chat.stream("Why is the sky blue?")) == expected


@tool
def lookup(city: str) -> str:
    """Looks up a city."""
    return f"{city} is a city."


long = ChatOpenAI(
    model=model, base_url=base_url, api_key="none", temperature=0, max_tokens=200, max_retries=0
)
caller = long.bind_tools([Sum], tool_choice="Sum")
called = caller.invoke("What is 3 plus 4?")
(call,) = called.tool_calls
Sum.model_validate(call["args"])
parts = None
for chunk in caller.stream("What is 3 plus 4?"):
    parts = chunk if parts is None else parts + chunk
assert [c["args"] for c in parts.tool_calls] == [call["args"]], parts
turns = [HumanMessage("What is 3 plus 4?"), called, ToolMessage("7", tool_call_id=call["id"])]
assert isinstance(long.bind_tools([lookup]).invoke(turns), AIMessage)
for method in ["json_schema", "function_calling"]:
    person = long.with_structured_output(Person, method=method).invoke("Ada is 36 years old.")
    assert isinstance(person, Person), person
vectors = OpenAIEmbeddings(
    model=model, base_url=base_url, api_key="none", check_embedding_ctx_length=False
).embed_documents(["one", "two"])
assert [len(vector) for vector in vectors] == [576, 576]

# instructor: through a forced call and through a JSON schema.
for mode in [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA]:
    person = instructor.from_openai(client, mode=mode).create(
        model=model,
        messages=[{"role": "user", "content": "Ada is 36 years old."}],
        response_model=Person,
        temperature=0,
        max_tokens=120,
        max_retries=0,
    )
    assert isinstance(person, Person), (mode, person)
print("frameworks: ok")
