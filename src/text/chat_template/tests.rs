use super::*;

#[test]
fn python_methods_and_raised_errors_work() {
    let template = ChatTemplate::new(
        "{{ bos_token }}{% for m in messages %}\n{% if m['role'].startswith('x') %}\n{{ raise_exception('no x') }}\
         {% endif %}[{{ m.content.strip() }}]{% endfor %}",
        "<s>",
        "</s>",
    )
    .unwrap();
    let ok = [serde_json::json!({"role": "user", "content": " hi "})];
    assert_eq!(template.render(&ok, &[]).unwrap(), "<s>[hi]");
    let bad = [serde_json::json!({"role": "x", "content": ""})];
    assert!(template.render(&bad, &[]).unwrap_err().to_string().contains("no x"));
    assert!(ChatTemplate::new("{% if %}", "", "").is_err());
}

/// What templates of real models have, beside what every Jinja has.
#[test]
fn templates_of_real_models_compile() {
    let render =
        |source: &str| ChatTemplate::new(source, "", "").unwrap().render(&[], &[]).unwrap();
    for (source, expected) in [
        ("a {%- generation -%} b {%- endgeneration -%} c", "abc"),
        ("{% generation %}{{ '{%' }}{% endgeneration %}.", "{%."),
        (
            "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}\
          {% endif %}{{ i }}{% endfor %}",
            "02",
        ),
        ("{{ tools is iterable and tools | length > 0 }}", "False"),
        (
            "{{ [] is iterable }}{{ 'a' is iterable }}{{ {} is iterable }}{{ 1 is iterable }}",
            "TrueTrueTrueFalse",
        ),
        (
            "{{ {'b': [1, 2], 'a': {'d': 1, 'c': 2}} | tojson(separators=(',', ':'), sort_keys=True) }}",
            r#"{"a":{"c":2,"d":1},"b":[1,2]}"#,
        ),
        (r#"{{ {'b': 'ä😀'} | tojson(ensure_ascii=True) }}"#, r#"{"b": "\u00e4\ud83d\ude00"}"#),
        ("{{ {'b': 'ä'} | tojson(ensure_ascii=False, indent=2) }}", "{\n  \"b\": \"ä\"\n}"),
    ] {
        assert_eq!(
            render(source).replace("true", "True").replace("false", "False"),
            expected,
            "{source}"
        );
    }
}

#[test]
fn prompts_end_as_asked() {
    let source = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}<end>{% endfor %}\
        {% if add_generation_prompt %}<assistant>{% endif %}";
    let template = ChatTemplate::new(source, "", "").unwrap();
    let say = |role: &str, content: &str| serde_json::json!({"role": role, "content": content});
    let messages = [say("user", "The"), say("assistant", " The end ")];
    for (ending, expected) in [
        (Ending::Assistant, "<user>The<end><assistant>The end<end><assistant>"),
        (Ending::Conversation, "<user>The<end><assistant>The end<end>"),
        (Ending::LastMessage, "<user>The<end><assistant>The end "),
    ] {
        let prompt = template.render_to(ending, &messages, &[], &Map::new());
        assert_eq!(prompt.unwrap(), expected);
    }
    let dumb = ChatTemplate::new("{{ messages[0].content }}", "", "").unwrap();
    assert!(dumb.render_to(Ending::LastMessage, &messages, &[], &Map::new()).is_err());
}

#[test]
fn variables_reach_the_template() {
    let source = "{{ messages | length }}{{ bos_token }}{% if enable_thinking is defined and not \
                  enable_thinking %}<think></think>{% endif %}{{ more.of[1] }}";
    let map = |value: Value| value.as_object().unwrap().clone();
    let of_all = map(serde_json::json!({"enable_thinking": false, "more": {"of": [1, 2]}}));
    let template = ChatTemplate::new(source, "<s>", "").unwrap().with_variables(of_all);
    assert_eq!(template.render(&[], &[]).unwrap(), "0<s><think></think>2");
    let own = map(serde_json::json!({"enable_thinking": true, "bos_token": "<b>"}));
    let prompt = template.render_to(Ending::Assistant, &[], &[], &own).unwrap();
    assert_eq!(prompt, "0<b>2");
    assert!(ChatTemplate::check_variables(&own).is_ok());
    let taken = map(serde_json::json!({"messages": []}));
    assert!(ChatTemplate::check_variables(&taken).unwrap_err().to_string().contains("messages"));
}

/// A template that would run or write for ever is an error.
#[test]
fn templates_end() {
    let long = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}";
    let wide = "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}";
    for source in [long, wide] {
        assert!(ChatTemplate::new(source, "", "").unwrap().render(&[], &[]).is_err());
    }
}

#[test]
fn templates_know_the_date() {
    let render = |source| ChatTemplate::new(source, "", "").unwrap().render(&[], &[]);
    let year: i16 = render("{{ strftime_now('%Y') }}").unwrap().parse().unwrap();
    assert!((2026..3000).contains(&year));
    assert!(render("{{ strftime_now('%!') }}").is_err());
}

fn conversation() -> ([serde_json::Value; 3], [serde_json::Value; 1]) {
    let function = serde_json::json!({"name": "f", "arguments": {"z": 1, "a": "<"}});
    let messages = [
        serde_json::json!({"role": "user", "content": "Go!"}),
        serde_json::json!({"role": "assistant", "content": "", "tool_calls": [
            {"id": "1", "type": "function", "function": function}]}),
        serde_json::json!({"role": "tool", "content": "42", "tool_call_id": "1"}),
    ];
    let tool = serde_json::json!({"type": "function", "function": {"name": "f"}});
    (messages, [tool])
}

/// A template that knows calls gets messages and tools as they are.
#[test]
fn templates_that_know_calls_write_them() {
    let source = "{% for t in tools %}{{ t | tojson }}{% endfor %}{% for m in messages %}[{{ m.role }}: \
         {{ m.content }}{% for c in m.tool_calls %}<tool_call>\n{\"name\": \"{{ c.function.name }}\", \
         \"arguments\": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}]{% endfor %}";
    let (messages, tools) = conversation();
    assert_eq!(
        ChatTemplate::new(source, "", "").unwrap().render(&messages, &tools).unwrap(),
        "{\"type\": \"function\", \"function\": {\"name\": \"f\"}}[user: Go!][assistant: <tool_call>\n\
         {\"name\": \"f\", \"arguments\": {\"z\": 1, \"a\": \"<\"}}\n</tool_call>][tool: 42]"
    );
}

/// A template that joins arguments with other texts gets them as texts, others as objects.
#[test]
fn templates_get_arguments_as_they_take_them() {
    let (messages, tools) = conversation();
    let json = r#"{"z": 1, "a": "<"}"#;
    for (arguments, expected) in [
        ("c.function.arguments + '!'", format!("{json}!")),
        ("'!' ~ c.function.arguments", format!("!{json}")),
        ("c['function']['arguments']", json.to_owned()),
        ("c.function.arguments | tojson", json.to_owned()),
        (
            "c.function.arguments if c.function.arguments is string else c.function.arguments | tojson",
            json.to_owned(),
        ),
        ("c.function.arguments.items() | list | length", "2".to_owned()),
        (
            "(c.function.arguments.items() | map('join', '=') | join(',')) if c.function.arguments is mapping else \
             c.function.arguments",
            "z=1,a=<".to_owned(),
        ),
    ] {
        let source = format!(
            "{{% if tools %}}<｜tool▁calls▁begin｜><｜tool▁sep｜>{{% endif %}}{{% for m in messages %}}\
             {{% for c in m.tool_calls %}}[{{{{ {arguments} }}}}]{{% endfor %}}{{% endfor %}}"
        );
        let prompt = ChatTemplate::new(&source, "", "").unwrap().render(&messages, &tools).unwrap();
        assert!(prompt.ends_with(&format!("[{expected}]")), "{arguments}: {prompt}");
    }
}

#[test]
fn other_templates_get_calls_spelled_out() {
    let source = "{% for m in messages %}[{{ m.role }}: {{ m.content }}]{% endfor %}";
    let (messages, tools) = conversation();
    let text = ChatTemplate::new(source, "", "").unwrap().render(&messages, &tools).unwrap();
    let (system, rest) = text.split_once("][user: Go!]").unwrap();
    assert!(system.contains("{\"type\": \"function\", \"function\": {\"name\": \"f\"}}"), "{text}");
    assert_eq!(
        rest,
        "[assistant: <tool_call>\n{\"name\": \"f\", \"arguments\": {\"z\": 1, \"a\": \"<\"}}\n\
         </tool_call>][user: <tool_response>\n42\n</tool_response>]"
    );
}

/// Gemma 2's template refuses a system message, its own or one that spells functions out.
#[test]
fn a_refused_system_message_begins_the_users_words() {
    let source = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}\
        {% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
    let template = ChatTemplate::new(source, "", "").unwrap();
    let say = |role: &str, content: &str| json!({"role": role, "content": content});
    let messages = [say("system", "Be brief."), say("user", "Hi"), say("assistant", "Hi.")];
    assert_eq!(template.render(&messages, &[]).unwrap(), "<user>Be brief.\n\nHi<assistant>Hi.");
    let tool = json!({"type": "function", "function": {"name": "f"}});
    let prompt = template.render(&messages[1..2], &[tool]).unwrap();
    assert!(prompt.starts_with("<user>You can call") && prompt.ends_with("\n\nHi"), "{prompt}");
    let refused = template.render(&messages[..1], &[]).unwrap_err();
    assert!(refused.to_string().contains("no system"), "{refused}");
}
