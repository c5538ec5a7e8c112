use serde_json::{Value, json};
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

use super::*;

const EOS: u32 = 300;
const VOCAB: usize = 310;

/// One token per byte, a few longer ones, an end, and ids beyond the tokenizer.
pub(super) fn tokenizer() -> Tokenizer {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let mut tokens: Vec<String> = alphabet.iter().map(char::to_string).collect();
    let merges = [("{", "\""), ("\"", ":"), ("t", "r"), ("u", "e"), ("tr", "ue"), ("1", "2")];
    tokens.extend(merges.iter().map(|(a, b)| format!("{a}{b}")));
    let vocab: Vec<(String, u32)> = tokens.into_iter().zip(0..).collect();
    let merges = merges.map(|(a, b)| (a.to_owned(), b.to_owned())).to_vec();
    let bpe = BPE::builder()
        .vocab_and_merges(vocab.into_iter().collect::<tokenizers::models::bpe::Vocab>(), merges);
    let mut tokenizer = Tokenizer::new(bpe.build().unwrap());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, false)));
    tokenizer.with_decoder(Some(ByteLevel::new(false, true, false)));
    while tokenizer.get_vocab_size(true) <= EOS as usize {
        let name = format!("<s{}>", tokenizer.get_vocab_size(true));
        tokenizer.add_special_tokens([AddedToken::from(name, true)]).unwrap();
    }
    tokenizer
}

pub(super) fn compiler() -> GrammarCompiler {
    GrammarCompiler::new(&tokenizer(), VOCAB, &[EOS]).unwrap()
}

fn allowed(state: &mut GrammarState, place: usize) -> Vec<u32> {
    let mut buffer = Vec::new();
    let masked = state.masked(place, &[0.0; VOCAB], None, &mut buffer).unwrap();
    (0..).zip(masked).filter(|(_, logit)| **logit == 0.0).map(|(id, _)| id).collect()
}

fn schema() -> Value {
    json!({"type": "object", "additionalProperties": false, "required": ["ok", "n"], "properties": {
        "ok": {"type": "boolean"}, "n": {"type": "integer", "minimum": 0, "maximum": 99},
        "s": {"enum": ["a", "b\n"]},
    }})
}

/// Random allowed tokens make a text of the grammar, however many draft tokens, allowed or not,
/// were followed and taken back on the way.
#[test]
fn random_walks_stay_inside_with_any_drafts() {
    let (compiler, tokenizer) = (compiler(), tokenizer());
    let grammar = compiler.compile(&GrammarSource::JsonSchema(schema())).unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    let mut texts = std::collections::HashSet::new();
    for _ in 0..60 {
        let (mut state, mut plain, mut ids) = (grammar.start(), grammar.start(), Vec::new());
        while !plain.is_complete() {
            assert!(ids.len() < 400);
            for _ in 0..random.usize(0..4) {
                let place = state.drafted();
                let options = allowed(&mut state, place);
                let id = match random.bool() {
                    true => options[random.usize(0..options.len())],
                    false => random.u32(0..VOCAB as u32),
                };
                let text = |id: u32| tokenizer.id_to_token(id).unwrap_or_default();
                match state.forced() {
                    None => assert!(state.is_complete() || options.len() > 1, "after {ids:?}"),
                    Some((id, sole)) => {
                        assert!(options.contains(&id) && sole == (options.len() == 1));
                        let spelled = text(id);
                        let along = |t: String| t.starts_with(&spelled) || spelled.starts_with(&t);
                        assert!(options.iter().all(|id| along(text(*id))), "after {ids:?}");
                    }
                }
                let may = !state.is_complete() && options.contains(&id);
                assert_eq!(state.draft(id), may, "{id} after {ids:?}");
            }
            if random.bool() {
                state.take_back();
                assert_eq!(state.drafted(), 0);
            }
            let options = allowed(&mut plain, 0);
            assert_eq!(allowed(&mut state, 0), options, "after {ids:?}");
            let id = options[random.usize(0..options.len())];
            state.commit(0, id).unwrap();
            plain.commit(0, id).unwrap();
            ids.push(id);
        }
        assert!(state.is_complete());
        let text = tokenizer.decode(&ids, true).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert!(value["ok"].is_boolean() && value["n"].as_u64().unwrap() < 100, "{text}");
        texts.insert(text);
    }
    assert!(texts.len() > 20, "{texts:?}");
}

/// Where there is one way on, the longest token of it is forced, then the next, to the end.
#[test]
fn what_must_come_is_forced() {
    let compiler = compiler();
    let grammar = compiler.compile(&GrammarSource::Regex("\\{\"true[12]2".into())).unwrap();
    let id = |text: &str| tokenizer().token_to_id(text).unwrap();
    let mut state = grammar.start();
    for text in ["{\"", "true"] {
        assert_eq!(state.forced(), Some((id(text), false)));
        assert!(state.draft(id(text)));
    }
    assert_eq!(state.forced(), None, "1, 12 or 2");
    assert!(state.draft(id("1")));
    assert_eq!(state.forced(), Some((id("2"), true)));
    state.take_back();
    assert_eq!(state.forced(), Some((id("{\""), false)));
    "{\"true12".chars().for_each(|c| state.commit(0, id(&c.to_string())).unwrap());
    assert_eq!(state.forced(), None, "nothing follows the end");
}

/// Accepted draft tokens count: the state after them is that of having committed each.
#[test]
fn accepted_drafts_are_committed() {
    let compiler = compiler();
    let grammar = compiler.compile(&GrammarSource::Regex("[ab]{3}c?".into())).unwrap();
    let id = |text: &str| tokenizer().token_to_id(text).unwrap();
    let (a, b, c) = (id("a"), id("b"), id("c"));
    let mut state = grammar.start();
    assert!(
        state.draft(a) && state.draft(b) && !state.draft(c) && state.draft(b) && state.draft(c)
    );
    assert!(!state.draft(c));
    assert_eq!(allowed(&mut state, 1), [a, b]);
    state.commit(1, a).unwrap();
    assert_eq!(allowed(&mut state, 0), [a, b]);
    state.commit(0, b).unwrap();
    assert_eq!(allowed(&mut state, 0), [c, EOS]);
    assert!(!state.is_complete());
    state.commit(0, c).unwrap();
    assert!(state.is_complete());
    assert_eq!(allowed(&mut state, 0), [EOS]);
    assert!(state.commit(0, a).is_err(), "beyond the end");
}

#[test]
fn trimmed_rows_are_masked_by_their_ids() {
    let grammar =
        compiler().compile(&GrammarSource::Choice(vec!["a\"".into(), "b".into()])).unwrap();
    let id = |text: &str| tokenizer().token_to_id(text).unwrap();
    let ids = [id("a"), id("b"), id("c")];
    let mut sorted = ids;
    sorted.sort_unstable();
    let mut buffer = Vec::new();
    let mut state = grammar.start();
    let masked = state.masked(0, &[1.0; 3], Some(&sorted), &mut buffer).unwrap();
    assert_eq!(masked, [1.0, 1.0, f32::NEG_INFINITY]);
}

#[test]
fn wrong_or_long_grammars_are_refused() {
    let compiler = compiler();
    let mut taken = Vec::new();
    for source in [
        GrammarSource::Regex("(".into()),
        GrammarSource::Lark("start: nothing".into()),
        GrammarSource::Lark("x".repeat(1 << 20)),
        GrammarSource::JsonSchema(json!({"type": "nonsense"})),
        GrammarSource::JsonSchema(json!({"$ref": "https://example.com/schema"})),
        GrammarSource::JsonSchema(json!({"type": "string", "minLength": 3, "maxLength": 1})),
        GrammarSource::Choice(vec![]),
    ] {
        if compiler.compile(&source).is_ok() {
            taken.push(format!("{source:?}"));
        }
    }
    assert_eq!(taken, Vec::<String>::new());
}

/// A grammar may have another one within, whose errors are told.
#[test]
fn a_form_stands_within_a_grammar() {
    let (compiler, tokenizer) = (compiler(), tokenizer());
    let lark = "start: thought GAP? @form\nthought[lazy]: /(.|\\n)*<\\/t>/\nGAP: /[ \\n]{1,8}/";
    let around = |form: GrammarSource| {
        let (lark, form) = (lark.to_owned(), Box::new(form));
        compiler.compile(&GrammarSource::Around { lark, form })
    };
    for (form, text, wrong) in [
        (GrammarSource::JsonSchema(schema()), "so\n</t>\n\n{\"ok\":true,\"n\":12}", "so</t>true"),
        (GrammarSource::Regex("[a-c]{2}".into()), "</t>ab", "</t> d"),
        (
            GrammarSource::LenientSchema(
                json!({"items": {"const": 1}, "type": "array", "uniqueItems": true}),
            ),
            "</t>[1,1]",
            "</t>[2",
        ),
        (GrammarSource::Choice(vec!["yes".into(), "no".into()]), "{\"</t>yes", "</t>maybe"),
        (GrammarSource::Lark("start: \"x\" /y+/ \"z\"".into()), "x</t> xyyz", "</t>z"),
    ] {
        let grammar = around(form).unwrap();
        let follow = |text: &str| {
            let mut state = grammar.start();
            let encoding = tokenizer.encode(text, false).unwrap();
            let followed = encoding.get_ids().iter().all(|id| state.draft(*id));
            followed.then(|| allowed(&mut state, encoding.get_ids().len()).contains(&EOS))
        };
        assert_eq!(follow(text), Some(true), "{text}");
        assert_eq!(follow(wrong), None, "{wrong}");
        assert_eq!(follow("only thoughts"), Some(false));
    }
    let deep = (0..2000).fold(json!({}), |inner, _| json!({"items": inner}));
    assert!(around(GrammarSource::JsonSchema(deep)).unwrap_err().to_string().contains("deep"));
    assert!(around(GrammarSource::JsonSchema(json!({"type": "colour"}))).is_err());
}
