//! What takes the place of the model's own: chat templates, variables for them, sampling parameters.

use axum::Router;
use clap::Parser;
use pleach::cli::{Args, Config};
use pleach::server::{AppState, load, router};
use serde_json::{Value, json};

use super::support::gguf;
use super::{post, refused, send_to, serving};

const THINKING: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}\
    {% if add_generation_prompt %}<assistant>{% if enable_thinking is defined and not enable_thinking %}<none>\
    {% endif %}{{ note }}{% endif %}";

/// A server with that template, whose model does not think unless a request wants it.
fn thinking() -> Router {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), THINKING).unwrap();
    let path = file.path().to_str().unwrap();
    let variables = r#"{"enable_thinking": false, "note": "?"}"#;
    let flags = ["--chat-template", path, "--chat-template-kwargs", variables];
    let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle();
    let state = AppState::new(metrics);
    state.serve(serving(&flags));
    router(state)
}

#[tokio::test(flavor = "multi_thread")]
async fn variables_come_from_the_server_and_from_the_request() {
    let app = thinking();
    let prompt = |kwargs: Option<Value>| {
        let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
        if let Some(kwargs) = kwargs {
            body["chat_template_kwargs"] = kwargs;
        }
        let app = app.clone();
        async move {
            let (status, text) = send_to(app, "POST", "/apply-template", &body.to_string()).await;
            assert!(status.is_success(), "{text}");
            let answer: Value = serde_json::from_str(&text).unwrap();
            answer["prompt"].as_str().unwrap().to_owned()
        }
    };
    for (kwargs, expected) in [
        (None, "<user>hi<assistant><none>?"),
        (Some(Value::Null), "<user>hi<assistant><none>?"),
        (Some(json!({})), "<user>hi<assistant><none>?"),
        (Some(json!({"enable_thinking": true})), "<user>hi<assistant>?"),
        (Some(json!({"note": ["a"], "unknown": {"b": 1}})), "<user>hi<assistant><none>['a']"),
    ] {
        assert_eq!(prompt(kwargs.clone()).await, expected, "{kwargs:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_conversation_takes_variables() {
    let chat = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1});
    let with = |kwargs: Value| {
        let mut body = chat.clone();
        body["chat_template_kwargs"] = kwargs;
        body
    };
    let answer = post("/v1/chat/completions", with(json!({"enable_thinking": false}))).await;
    assert_eq!(answer["usage"]["completion_tokens"], 1, "{answer}");
    let mut tokens = with(json!({"enable_thinking": false}));
    tokens.as_object_mut().unwrap().remove("max_tokens");
    assert!(post("/tokenize", tokens).await["count"].as_u64().unwrap() > 0);
    let many: Value =
        (0..65).map(|n| (n.to_string(), json!(1))).collect::<serde_json::Map<_, _>>().into();
    let wrong = [json!({"messages": []}), json!({"tools": 1}), json!(["x"]), json!("x"), many];
    for kwargs in wrong.into_iter().chain([json!({"x": "y".repeat(70_000)})]) {
        refused("/v1/chat/completions", &with(kwargs), "chat_template_kwargs").await;
    }
}

#[test]
fn flags_of_templates_say_what_is_wrong() {
    for (flag, value, said) in [
        ("--chat-template", "/nowhere.jinja", "No such file"),
        ("--chat-template-kwargs", "[1]", "no JSON object"),
        ("--chat-template-kwargs", "{\"messages\": 1}", "`messages` comes from the conversation"),
    ] {
        let error = Args::try_parse_from(["pleach", flag, value]).unwrap_err().to_string();
        assert!(error.contains(flag) && error.contains(said), "{error}");
    }
}

/// A folder with a tiny model, a tokenizer of letters and this chat template, or these.
pub(super) fn tiny_model(template: impl Into<Value>) -> tempfile::TempDir {
    let template = template.into();
    let folder = tempfile::tempdir().unwrap();
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/llama-tied");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(golden.join(name), folder.path().join(name)).unwrap();
    }
    let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
    write("tokenizer.json", gguf::letters_json());
    write("tokenizer_config.json", json!({"chat_template": template}).to_string());
    folder
}

/// A model whose own template does not compile completes texts and takes no conversation; a template that is asked for
/// must compile.
#[tokio::test(flavor = "multi_thread")]
async fn a_template_of_no_use_costs_the_chat_alone() {
    let folder = tiny_model("{% if %}");
    let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
    let flags = ["pleach", "--model", folder.path().to_str().unwrap()];
    let load = |more: &[&str]| load(&Config::from(Args::parse_from(flags.iter().chain(more))));
    let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle();
    let state = AppState::new(metrics);
    state.serve(load(&[]).unwrap());
    let app = router(state);
    let body = json!({"prompt": "abc", "max_tokens": 2}).to_string();
    let (status, text) = send_to(app.clone(), "POST", "/v1/completions", &body).await;
    assert!(status.is_success(), "{text}");
    let body = json!({"messages": [{"role": "user", "content": "abc"}]}).to_string();
    let (status, text) = send_to(app, "POST", "/v1/chat/completions", &body).await;
    assert!(status == 400 && text.contains("no chat template"), "{text}");

    write("broken.jinja", "{% if %}".to_owned());
    let file = folder.path().join("broken.jinja");
    let error = load(&["--chat-template", file.to_str().unwrap()]).err().unwrap();
    assert!(format!("{error:#}").contains("chat template"), "{error:#}");
}

/// A model's template for tools is used where a request has some; the operator's comes before both.
#[tokio::test(flavor = "multi_thread")]
async fn requests_with_tools_have_their_own_template() {
    let named = |name: &str, template: &str| json!({"name": name, "template": template});
    let spelling =
        "{# [AVAILABLE_TOOLS] #}[TOOL_CALLS]{% for t in tools %}{{ t.function.name }}{% endfor %}";
    let folder = tiny_model(json!([named("default", "plain"), named("tool_use", spelling)]));
    let file = folder.path().join("other.jinja");
    let other = "{% if tools %}other {{ tools | length }}{% endif %}<tool_call>{# \"arguments\" #}";
    std::fs::write(&file, other).unwrap();
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let prompts = async |more: &[&str]| {
        let flags = ["pleach", "--model", folder.path().to_str().unwrap()];
        let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let state = AppState::new(metrics.handle());
        let config = Config::from(Args::parse_from(flags.iter().chain(more)));
        state.serve(load(&config).unwrap());
        let app = router(state);
        let mut prompts = Vec::new();
        for more in
            [json!({}), json!({"tools": tools}), json!({"tools": tools, "tool_choice": "none"})]
        {
            let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let (status, text) =
                send_to(app.clone(), "POST", "/apply-template", &body.to_string()).await;
            assert!(status.is_success(), "{text}");
            let answer: Value = serde_json::from_str(&text).unwrap();
            prompts.push(answer["prompt"].as_str().unwrap().to_owned());
        }
        prompts
    };
    assert_eq!(prompts(&[]).await, ["plain", "[TOOL_CALLS]f", "plain"]);
    let operators = prompts(&["--chat-template", file.to_str().unwrap()]).await;
    assert_eq!(operators, ["<tool_call>", "other 1<tool_call>", "<tool_call>"]);
}

/// What a request leaves out is as the flag has it, then as the model has it.
#[tokio::test(flavor = "multi_thread")]
async fn sampling_parameters_have_defaults() {
    let folder = tiny_model("{{ messages[0].content }}");
    let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
    write(
        "generation_config.json",
        json!({"temperature": 0.25, "top_p": 0.5, "top_k": 1}).to_string(),
    );
    let path = folder.path().to_str().unwrap();
    let app = |more: &[&str]| {
        let model = ["pleach", "--model", path];
        let flags = model.iter().chain(more);
        let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let state = AppState::new(metrics.handle());
        state.serve(load(&Config::from(Args::parse_from(flags))).unwrap());
        router(state)
    };
    let ask = |app: Router, path: &'static str, body: Value| async move {
        let (status, text) = send_to(app, "POST", path, &body.to_string()).await;
        assert!(status.is_success(), "{text}");
        serde_json::from_str::<Value>(&text).unwrap()
    };
    let (own, over) = (
        app(&[]),
        app(&["--override-generation-config", "{\"top_k\": 0, \"temperature\": 50, \"top_p\": 1}"]),
    );
    let response = json!({"input": "abc", "max_output_tokens": 4});
    let answer = ask(own.clone(), "/v1/responses", response.clone()).await;
    assert_eq!((&answer["temperature"], &answer["top_p"]), (&json!(0.25), &json!(0.5)));
    let answer = ask(over.clone(), "/v1/responses", response).await;
    assert_eq!((&answer["temperature"], &answer["top_p"]), (&json!(50.0), &json!(1.0)));
    // One token to draw from gives one text; all of them, as good as alike, give many.
    let texts = |app: Router, extra: Value| async move {
        let mut body = json!({"prompt": "abc", "max_tokens": 8, "n": 8, "ignore_eos": true});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let answer = ask(app, "/v1/completions", body).await;
        let choices = answer["choices"].as_array().unwrap().iter();
        choices
            .map(|choice| choice["text"].to_string())
            .collect::<std::collections::HashSet<_>>()
            .len()
    };
    assert_eq!(texts(own.clone(), json!({})).await, 1);
    assert!(texts(own, json!({"top_k": -1, "temperature": 50, "top_p": 1})).await > 1);
    assert!(texts(over.clone(), json!({})).await > 1);
    assert_eq!(texts(over, json!({"temperature": 0})).await, 1);
    let wrong = ["pleach", "--override-generation-config", "{\"top_p\": 2}"];
    let error = Args::try_parse_from(wrong).unwrap_err().to_string();
    assert!(error.contains("top_p must be in (0, 1]"), "{error}");
}
