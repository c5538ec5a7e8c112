//! Chat templates by name.

use std::path::Path;

use pleach::checkpoint::write::folder_files;
use pleach::checkpoint::{ChatTemplates, Checkpoint};
use pleach_kernels::DType;
use serde_json::{Value, json};

use super::support::gguf::{self, Foreign};
use super::{convert, golden, variant};

fn templates(default: &str, tool_use: Option<&str>) -> ChatTemplates {
    ChatTemplates { default: Some(default.into()), tool_use: tool_use.map(str::to_owned) }
}

fn found(path: &Path) -> ChatTemplates {
    Checkpoint::open(path).unwrap().chat_templates
}

/// What a folder has, in one form or the other, and what becomes of it in a copy.
#[test]
fn folders_have_templates_by_name() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = variant(temporary.path(), "llama-tied", |_| {});
    let write = |name: &str, text: String| std::fs::write(folder.join(name), text).unwrap();
    let set = |field: Value| {
        write("tokenizer_config.json", json!({"chat_template": field}).to_string());
        found(&folder)
    };
    let named = |name: &str| json!({"name": name, "template": format!("of {name}")});
    assert_eq!(set(json!("one")), templates("one", None));
    assert_eq!(set(json!(null)), ChatTemplates::default());
    assert_eq!(set(json!([])), ChatTemplates::default());
    assert_eq!(set(json!([1, {"name": "default"}])), ChatTemplates::default());
    assert_eq!(set(json!([named("rag"), named("default")])), templates("of default", None));
    assert_eq!(set(json!([named("tool_use")])), templates("of tool_use", Some("of tool_use")));
    let all = set(json!([named("tool_use"), named("rag"), named("default")]));
    assert_eq!(all, templates("of default", Some("of tool_use")));
    // Files come before settings.
    std::fs::create_dir(folder.join("additional_chat_templates")).unwrap();
    write("additional_chat_templates/tool_use.jinja", "its own".into());
    write("additional_chat_templates/rag.jinja", "another".into());
    assert_eq!(found(&folder), templates("of default", Some("its own")));
    write("chat_template.jinja", "its default".into());
    assert_eq!(found(&folder), templates("its default", Some("its own")));
    let copy = temporary.path().join("copy");
    let whole = Checkpoint::open(&folder).unwrap();
    folder_files(&copy, &whole.config, DType::F16, &whole).unwrap();
    std::fs::copy(folder.join("model.safetensors"), copy.join("model.safetensors")).unwrap();
    assert_eq!(found(&copy), whole.chat_templates);
    std::fs::remove_dir_all(folder.join("additional_chat_templates")).unwrap();
    assert_eq!(found(&folder), templates("its default", None));
}

/// A GGUF file has them under keys; a folder made of it, in the tokenizer's settings.
#[test]
fn gguf_files_have_templates_by_name() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("model.gguf");
    convert(&golden("llama-tied"), &path);
    gguf::add_letters(&path);
    assert_eq!(found(&path), templates(gguf::TEMPLATE, None));
    gguf::add(&path, &[("tokenizer.chat_template.tool_use", Foreign::Text("for tools"))]);
    let whole = Checkpoint::open(&path).unwrap();
    assert_eq!(whole.chat_templates, templates(gguf::TEMPLATE, Some("for tools")));
    let copy = temporary.path().join("copy");
    folder_files(&copy, &whole.config, DType::F16, &whole).unwrap();
    let weights = golden("llama-tied").join("model.safetensors");
    std::fs::copy(weights, copy.join("model.safetensors")).unwrap();
    assert_eq!(found(&copy), whole.chat_templates);
}

/// The one for tools is used where there are tools; where it does not compile, the other is.
#[test]
fn conversations_with_functions_have_their_own_template() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = variant(temporary.path(), "llama-tied", |_| {});
    let template = |tool_use: &str| {
        let all = json!([{"name": "default", "template": "{{ bos_token }}{{ mood }}"},
            {"name": "tool_use", "template": tool_use}]);
        let settings = json!({"chat_template": all, "bos_token": "<s>"});
        std::fs::write(folder.join("tokenizer_config.json"), settings.to_string()).unwrap();
        let template = Checkpoint::open(&folder).unwrap().compile_template().unwrap().unwrap();
        template.with_variables(json!({"mood": "well"}).as_object().unwrap().clone())
    };
    let [messages, tools] = [json!({"role": "user", "content": "hi"}), json!({"name": "f"})];
    let rendered = |tool_use: &str, functions: bool| {
        let tools = if functions { std::slice::from_ref(&tools) } else { &[] };
        let messages = std::slice::from_ref(&messages);
        template(tool_use).of(functions).render(messages, tools).unwrap()
    };
    let own = "{{ bos_token }}{{ mood }}<tool_call>{{ tools[0].name }}{# \"arguments\" #}";
    assert_eq!(rendered(own, false), "<s>well");
    assert_eq!(rendered(own, true), "<s>well<tool_call>f");
    assert_eq!(rendered("{% if %}", true), "<s>well");
}
