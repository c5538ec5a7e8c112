//! `GET /openapi.json`: the API's description, made from the types that requests are read into and answers
//! are written from.

use std::sync::LazyLock;

use axum::Json;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use crate::server::wire::{
    AdapterLoad, AdapterUnload, Answer, AnthropicFailure, AskedModel, Chat, Completion,
    Conversation, Detokenize, Detokenized, DraftChange, DraftStatus, Drawing, DryPenalty,
    EmbeddingList, Embeddings, Failure, Form, MessageAnswer, MessageTokens, Model, ModelList,
    ReasoningOptions, ResponseAnswer, RouterDefaults, Sampling, Status, Templated, Tokenize,
    Tokens, Tools, Version, messages, responses,
};

/// Answers with the document.
pub(crate) async fn openapi() -> Json<&'static Value> {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(document);
    Json(&DOCUMENT)
}

fn document() -> Value {
    let settings =
        || SchemaSettings::draft2020_12().with(|s| s.definitions_path = COMPONENTS.into());
    let mut document = Document {
        requests: settings().for_deserialize().into_generator(),
        answers: settings().for_serialize().into_generator(),
        paths: Map::new(),
    };
    document.describe();
    let mut schemas = document.requests.take_definitions(true);
    schemas.extend(document.answers.take_definitions(true));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "pleach",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "An OpenAI-compatible inference server that drafts with the served model's \
                own pruned copy. Fields that are not listed, and names that an object has twice, are refused by name.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": document.paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        // Only where the server has keys.
        "security": [{}, {"key": []}],
    })
}

const COMPONENTS: &str = "/components/schemas";

struct Document {
    requests: SchemaGenerator,
    answers: SchemaGenerator,
    paths: Map<String, Value>,
}

impl Document {
    fn describe(&mut self) {
        let model = self.group::<AskedModel>();
        let chat = [
            model.clone(),
            self.group::<Conversation>(),
            self.group::<Chat>(),
            self.group::<Tools>(),
            self.group::<Sampling>(),
            self.group::<Drawing>(),
            self.group::<DryPenalty>(),
            self.group::<ReasoningOptions>(),
            self.group::<Form>(),
            self.group::<RouterDefaults>(),
        ];
        let answer = self.answer::<Answer>();
        self.post("/v1/chat/completions", "Answers a conversation", &chat, answer.clone(), true);
        let completion = [
            model.clone(),
            self.group::<Completion>(),
            self.group::<Sampling>(),
            self.group::<Drawing>(),
            self.group::<DryPenalty>(),
            self.group::<ReasoningOptions>(),
            self.group::<Form>(),
            self.group::<RouterDefaults>(),
        ];
        self.post("/v1/completions", "Goes on with a text", &completion, answer, true);
        let request = [
            model.clone(),
            self.group::<responses::Responses>(),
            self.group::<Drawing>(),
            self.group::<DryPenalty>(),
        ];
        let (summary, answer) =
            ("Answers a conversation, as a response", self.answer::<ResponseAnswer>());
        self.post("/v1/responses", summary, &request, answer, true);
        let dialogue = self.group::<messages::Dialogue>();
        let request = [
            model.clone(),
            dialogue.clone(),
            self.group::<messages::Messages>(),
            self.group::<Drawing>(),
            self.group::<DryPenalty>(),
        ];
        let summary = "Answers a conversation, in Anthropic's shape";
        let answer = self.answer::<MessageAnswer>();
        self.post("/v1/messages", summary, &request, answer, true);
        let summary = "Counts the tokens of a conversation, in Anthropic's shape";
        let answer = self.answer::<MessageTokens>();
        self.post("/v1/messages/count_tokens", summary, &[model.clone(), dialogue], answer, false);
        // What is refused before the handler is refused in OpenAI's shape.
        let failures = [self.answer::<AnthropicFailure>(), self.answer::<Failure>()];
        for path in ["/v1/messages", "/v1/messages/count_tokens"] {
            self.paths[path]["post"]["responses"]["default"] =
                in_json("An error", json!({"anyOf": failures}));
        }
        let request = [model.clone(), self.group::<Embeddings>()];
        let answer = self.answer::<EmbeddingList>();
        self.post("/v1/embeddings", "Embeds texts", &request, answer, false);
        let answer = self.answer::<Templated>();
        let request = [model.clone(), self.group::<Conversation>(), self.group::<Tools>()];
        let summary = "Gives the prompt that a conversation makes";
        self.post("/apply-template", summary, &request, answer, false);
        let mut conversation = self.group::<Conversation>();
        conversation.remove("required");
        let tools = self.group::<Tools>();
        let request = [model.clone(), self.group::<Tokenize>(), conversation, tools];
        let answer = self.answer::<Tokens>();
        self.post("/tokenize", "Turns a text into tokens", &request, answer, false);
        let request = [model.clone(), self.group::<Detokenize>()];
        let answer = self.answer::<Detokenized>();
        self.post("/detokenize", "Turns tokens into a text", &request, answer, false);

        let request = [model, self.group::<DraftChange>()];
        let answer = self.answer::<DraftStatus>();
        self.get("/admin/draft", "Tells which draft of the model that the query names (`?model=`), or of the main one, serves", in_json("Success", answer.clone()));
        let summary = "Has another draft compared on live traffic, and the faster one serve";
        self.post("/admin/draft", summary, &request, answer.clone(), false);
        let summary = "Gives up a comparison of drafts, of the model that the query names (`?model=`) or of the main one";
        self.operation("delete", "/admin/draft", summary, in_json("Success", answer));
        for method in ["get", "delete"] {
            self.paths["/admin/draft"][method]["parameters"] = json!([{
                "name": "model", "in": "query", "description": "Name of a served model; the main one's draft without it",
                "schema": {"type": "string"},
            }]);
        }
        let groups = [self.group::<AdapterLoad>()];
        let path = "/v1/load_lora_adapter";
        self.post(
            path,
            "Loads a LoRA adapter, where --allow-runtime-lora lets it",
            &groups,
            anything(),
            false,
        );
        let unload = [self.group::<AdapterUnload>()];
        let path = "/v1/unload_lora_adapter";
        self.post(
            path,
            "Unloads a LoRA adapter; requests that have begun finish with it",
            &unload,
            anything(),
            false,
        );
        for path in ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"] {
            self.paths[path]["post"]["responses"]["200"] = in_text("Success", "text/plain");
        }
        let answer = self.answer::<ModelList>();
        self.get("/v1/models", "Lists the names of the served models", in_json("Success", answer));
        let answer = self.answer::<Model>();
        self.get("/v1/models/{model}", "Tells of a served model", in_json("Success", answer));
        self.paths["/v1/models/{model}"]["get"]["parameters"] = json!([{
            "name": "model", "in": "path", "required": true, "description": "One of its names",
            "schema": {"type": "string"},
        }]);
        let status = self.answer::<Status>();
        self.get("/health", "Whether the engines live", in_json("They do", status.clone()));
        self.get("/ready", "Whether requests are wanted here", in_json("They are", status));
        let version = self.answer::<Version>();
        self.get("/version", "The server's version", in_json("Success", version));
        let summary = "Metrics for Prometheus; not here where they have an address of their own";
        self.get("/metrics", summary, in_text("Success", "text/plain"));
        self.get("/openapi.json", "This document", in_json("Success", anything()));
        self.get("/", "The playground", in_text("Success", "text/html"));
    }

    /// The fields that a struct takes out of a request.
    fn group<T: JsonSchema>(&mut self) -> Schema {
        T::json_schema(&mut self.requests)
    }

    fn answer<T: JsonSchema>(&mut self) -> Value {
        self.answers.subschema_for::<T>().to_value()
    }

    fn get(&mut self, path: &str, summary: &str, success: Value) {
        self.operation("get", path, summary, success);
    }

    fn operation(&mut self, method: &str, path: &str, summary: &str, success: Value) {
        let failure = in_json("An error", self.answer::<Failure>());
        let operation = json!({
            "summary": summary, "operationId": identifier(method, path),
            "responses": {"200": success, "default": failure},
        });
        self.add(method, path, operation);
    }

    /// Adds a method to what its path has.
    fn add(&mut self, method: &str, path: &str, operation: Value) {
        let methods = self.paths.entry(path).or_insert_with(|| json!({}));
        methods[method] = operation;
    }

    fn post(&mut self, path: &str, summary: &str, groups: &[Schema], answer: Value, streams: bool) {
        let (mut properties, mut required) = (Map::new(), Vec::new());
        for group in groups {
            let fields = group.get("properties").and_then(Value::as_object);
            properties.extend(fields.cloned().unwrap_or_default());
            let names = group.get("required").and_then(Value::as_array);
            required.extend(names.cloned().unwrap_or_default());
        }
        let mut request = json!({
            "type": "object", "properties": properties, "additionalProperties": false,
        });
        if !required.is_empty() {
            request["required"] = required.into();
        }
        let mut success = in_json("Success", answer);
        if streams {
            success["content"]["text/event-stream"] = json!({"schema": {"type": "string"}});
        }
        let failure = in_json("An error", self.answer::<Failure>());
        let operation = json!({
            "summary": summary, "operationId": identifier("post", path),
            "requestBody": {"required": true, "content": {"application/json": {"schema": request}}},
            "responses": {"200": success, "default": failure},
        });
        self.add("post", path, operation);
    }
}

fn identifier(method: &str, path: &str) -> String {
    let words = path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.fold(method.to_owned(), |name, word| name + "_" + word)
}

fn anything() -> Value {
    json!({"type": "object"})
}

fn in_json(description: &str, schema: Value) -> Value {
    json!({"description": description, "content": {"application/json": {"schema": schema}}})
}

fn in_text(description: &str, kind: &str) -> Value {
    json!({"description": description, "content": {kind: {"schema": {"type": "string"}}}})
}
