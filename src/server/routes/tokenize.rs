//! `POST /tokenize` and `POST /detokenize`, in the shapes of vLLM and llama.cpp.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;

use super::chat::read_prompt;
use crate::server::error::ApiError;
use crate::server::request::body::Body;
use crate::server::request::dialect::Dialect;
use crate::server::serving::Serving;
use crate::server::state::AppState;
use crate::server::wire::{
    Detokenize, Detokenized, PieceText, TokenList, TokenPiece, Tokenize, Tokens,
};

pub(crate) async fn tokenize(
    State(state): State<AppState>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Json<Tokens>, ApiError> {
    let tokens = state.prepare(bytes, |asked, body| tokens(&asked.serving, body)).await?;
    Ok(Json(tokens.1))
}

fn tokens(serving: &Serving, mut body: Body) -> Result<Tokens, ApiError> {
    let conversation = body.has("messages").then(|| read_prompt(&mut body)).transpose()?;
    let wanted: Tokenize = body.read()?;
    body.finish()?;
    let special = wanted.add_special_tokens.or(wanted.add_special);
    let (field, text, special) = match (wanted.prompt, wanted.content, conversation) {
        (Some(prompt), None, None) => ("prompt", prompt, special.unwrap_or(true)),
        (None, Some(content), None) => ("content", content, special.unwrap_or(false)),
        (None, None, Some(conversation)) => {
            ("messages", conversation.text(serving, Dialect::CHAT)?, special.unwrap_or(false))
        }
        _ => {
            let message = "give either `prompt`, `content` or `messages`";
            return Err(ApiError::invalid("prompt", message));
        }
    };
    let tokens = serving.encode(field, &text, special)?;
    let name = |&id: &u32| serving.tokenizer.id_to_token(id).unwrap_or_default();
    let names = wanted.return_token_strs.unwrap_or(false);
    Ok(Tokens {
        count: tokens.len(),
        max_model_len: serving.engine.limits().max_model_len,
        token_strs: names.then(|| tokens.iter().map(name).collect()),
        tokens: match wanted.with_pieces {
            Some(true) => TokenList::Pieces(tokens.iter().map(|id| piece(serving, *id)).collect()),
            _ => TokenList::Ids(tokens),
        },
    })
}

fn piece(serving: &Serving, id: u32) -> TokenPiece {
    let text = serving.texts.text(&[id]);
    let piece = String::from_utf8(serving.token_bytes(id, &text));
    TokenPiece {
        id,
        piece: piece.map_or_else(|e| PieceText::Bytes(e.into_bytes()), PieceText::Text),
    }
}

pub(crate) async fn detokenize(
    State(state): State<AppState>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Json<Detokenized>, ApiError> {
    let text = state.prepare(bytes, |asked, mut body| {
        let Detokenize { tokens } = body.read()?;
        body.finish()?;
        asked.serving.decode("tokens", &tokens)
    });
    let (_, text) = text.await?;
    Ok(Json(Detokenized { content: text.clone(), prompt: text }))
}
