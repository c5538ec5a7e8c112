//! Tools of `/v1/responses` that are more than a function: namespaces, and kinds that the server has not.

use super::*;

fn function(name: &str) -> Value {
    json!({"type": "function", "name": name, "parameters": {"type": "object", "required": ["a"],
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}}}})
}

fn asking(tools: Value, choice: Value) -> Value {
    json!({"input": "Call it.", "tools": tools, "tool_choice": choice, "temperature": 0, "max_output_tokens": 60})
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_of_a_namespace_are_called_by_its_name() {
    let namespace = |tools: Value| json!({"type": "namespace", "name": "crm", "description": "Customers", "tools": tools});
    let tools = json!([function("plain"), {"type": "web_search", "external_web_access": false},
        namespace(json!([function("find"), {"type": "custom", "name": "c", "format": {"type": "text"}}]))]);
    for (name, expected) in [("plain", None), ("find", Some("crm"))] {
        let named = json!({"type": "function", "name": name});
        let answer = post("/v1/responses", asking(tools.clone(), named)).await;
        let [call] = &answer["output"].as_array().unwrap()[..] else { panic!("{answer}") };
        assert_eq!((&call["type"], &call["name"]), (&json!("function_call"), &json!(name)));
        assert_eq!(call.get("namespace"), expected.map(Value::from).as_ref(), "{call}");
        // The tools that count are told.
        let told: Vec<&Value> =
            answer["tools"].as_array().unwrap().iter().map(|tool| &tool["type"]).collect();
        assert_eq!(told, ["function", "namespace"]);
        // The call comes back as it was given.
        let mut body = asking(tools.clone(), json!("auto"));
        let output =
            json!({"type": "function_call_output", "call_id": call["call_id"], "output": "3"});
        body["input"] = json!([{"role": "user", "content": "Call it."}, call, output]);
        assert_eq!(
            post("/v1/responses", body).await["status"].as_str().map(|s| s.len() > 3),
            Some(true)
        );
    }
    let many: Vec<Value> = (0..129).map(|place| function(&format!("f{place}"))).collect();
    for tools in [
        json!([{"type": "web_search"}]),
        json!([namespace(json!([])), {"type": "mcp", "server_label": "x"}]),
        json!([namespace(json!(many))]),
        json!([function("twice"), namespace(json!([function("twice")]))]),
        json!([{"type": "function", "name": "f", "colour": 1}]),
        json!([{"name": "f"}]),
    ] {
        refused("/v1/responses", &asking(tools, json!("auto")), "tools").await;
    }
}
