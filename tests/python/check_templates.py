"""Renders conversations by chat templates with the server and with Jinja2, set up as transformers has it, and says where
the two differ.

    pip install jinja2
    python tests/python/check_templates.py PLEACH FOLDER [NAME ...]

PLEACH is the server's program, FOLDER has templates as files `*.jinja` (llama.cpp's repository has some seventy public ones
in `models/templates`), and NAMEs choose some of them. The server is started anew for each template, with its default model.
What Jinja2 refuses, the server may render; what a template does not say of functions, the server spells out, so that
conversations with functions count only where the template reads `tools`.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox


class Generation(jinja2.ext.Extension):
    """The tag that marks, for training, what the assistant says."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        call = self.call_method("_same", [], [])
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _same(self, caller):
        return caller()


def refuse(message):
    raise jinja2.exceptions.TemplateError(message)


def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def environment():
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = to_json
    made.globals.update(raise_exception=refuse, strftime_now=time.strftime)
    return made


def conversations():
    """Names, messages and tools, with the arguments of calls as texts, as clients send them."""
    weather = {
        "name": "get_weather",
        "description": 'Weather <of> a city & "more"',
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    }
    tools = [{"type": "function", "function": weather}]
    arguments = json.dumps({"city": "Köln", "days": 2}, ensure_ascii=False)
    call = {"id": "abc123def", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    user = lambda text: {"role": "user", "content": text}
    said = lambda text, **more: {"role": "assistant", "content": text, **more}
    result = {"role": "tool", "content": '{"temp": 3.5}', "tool_call_id": "abc123def", "name": "get_weather"}
    system = {"role": "system", "content": "Be brief."}
    yield "user", [user("Hi <there> ä")], []
    yield "system", [system, user("Hi"), said("Hello."), user("More\nlines")], []
    yield "reasoning", [user("1+1?"), said("2", reasoning_content="Add."), user("2+2?")], []
    yield "tools", [user("Weather?")], tools
    yield "call", [user("Weather in Köln?"), said("", tool_calls=[call]), result], tools
    yield "calls", [system, user("Cold?"), said("I look.", tool_calls=[call]), result, said("Yes."), user("Thanks")], tools


def expected(template, messages, tools, generation, variables):
    messages = json.loads(json.dumps(messages))
    for message in messages:
        for call in message.get("tool_calls", []):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return template.render(
        messages=messages,
        tools=tools or None,
        add_generation_prompt=generation,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        **variables,
    )


def post(port, body):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/apply-template", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        return json.load(urllib.request.urlopen(request))["prompt"]
    except urllib.error.HTTPError as error:
        return f"refused: {json.load(error)['error']['message']}"


def check(program, path, port):
    """Differences of one template, and how many prompts were compared."""
    source = open(path, encoding="utf-8").read()
    template = environment().from_string(source)
    arguments = [program, "--port", str(port), "--no-speculation", "--chat-template", path]
    if "tools" in source:
        # Nothing is spelled out for the template.
        arguments += ["--tool-call-parser", "hermes"]
    server = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    differences, compared = [], 0
    try:
        while server.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ready")
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        if server.poll() is not None:
            return [("", "", server.stderr.read())], 1
        for name, messages, tools in conversations():
            if tools and "tools" not in source:
                continue
            for generation, variables in [(True, {}), (False, {}), (True, {"enable_thinking": False})]:
                try:
                    wanted = expected(template, messages, tools, generation, variables)
                except Exception:
                    continue
                body = {"messages": messages, "add_generation_prompt": generation, "chat_template_kwargs": variables}
                got = post(port, {**body, "tools": tools} if tools else body)
                compared += 1
                if got != wanted:
                    differences.append((name, wanted, got))
    finally:
        server.kill()
        server.wait()
    return differences, compared


def main(program, folder, *names):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files = sorted(name for name in os.listdir(folder) if name.endswith(".jinja"))
    total = different = 0
    for name in files:
        if names and name not in names:
            continue
        differences, compared = check(program, os.path.join(folder, name), port)
        total, different = total + compared, different + len(differences)
        for conversation, wanted, got in differences[:1]:
            at = len(os.path.commonprefix([wanted, got]))
            print(f"{name}: {len(differences)} of {compared} differ, first `{conversation}`")
            print(f"  wanted {wanted[max(0, at - 60) : at + 80]!r}\n  got    {got[max(0, at - 60) : at + 80]!r}")
    print(f"{total} prompts of {len(names or files)} templates, {different} differ")
    sys.exit(different > 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
