//! `export`: what other programs are given of a draft.

use pleach::checkpoint::Checkpoint;
use pleach::checkpoint::source::{DEFAULT_MODEL, default_cache_dir, resolve};
use pleach::model::tensor_names;

use super::{run, tools};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

fn shipped(name: &str) -> String {
    format!("{}/../drafts/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// The shipped standalone draft becomes a file and a folder that hold its blocks, the target's embedding and tokenizer,
/// and a head of the target's rows and zeros.
pub(crate) fn a_draft_becomes_a_whole_model() {
    let folder = tempfile::tempdir().unwrap();
    let draft = shipped("smollm2-135m-instruct-standalone.gguf");
    run(folder.path(), &format!("export --draft {draft} --out whole.gguf"));
    run(folder.path(), &format!("export --draft {draft} --out whole --dtype f32"));

    let source = resolve(&DEFAULT_MODEL.parse().unwrap(), &default_cache_dir()).unwrap();
    let mut target = Checkpoint::open(&source).unwrap();
    let mut draft = Checkpoint::open(draft.as_ref()).unwrap();
    let vocab = draft.draft_vocab.clone().unwrap();
    let width = target.config.hidden_size;
    let embedding = target.tensor(EMBEDDING).unwrap().to_f32();
    let text = "def f(x):\n    return 2 * x  # 40 % of \u{1f600}";
    let tokens = |model: &Checkpoint| {
        model.tokenizer.as_ref().unwrap().encode_fast(text, false).unwrap().get_ids().to_vec()
    };
    for name in ["whole.gguf", "whole"] {
        let mut whole = Checkpoint::open(&folder.path().join(name)).unwrap();
        whole.check_tensors().unwrap();
        assert!(!whole.config.tie_word_embeddings, "{name}");
        assert_eq!(whole.config.num_hidden_layers, draft.config.num_hidden_layers, "{name}");
        assert_eq!(whole.config.eos_token_ids, target.config.eos_token_ids, "{name}");
        assert_eq!(tokens(&whole), tokens(&target), "{name}");
        assert_eq!(whole.chat_templates, target.chat_templates, "{name}");
        assert_eq!(whole.tensor(EMBEDDING).unwrap().to_f32(), embedding, "{name}");
        let head = whole.tensor(HEAD).unwrap().to_f32();
        for (id, (row, own)) in
            (0..).zip(head.chunks_exact(width).zip(embedding.chunks_exact(width)))
        {
            let expected = if vocab.contains(&id) { own } else { &vec![0.0; width] };
            assert_eq!(row, expected, "{name}: row {id}");
        }
        for tensor in tensor_names(&draft.config, |name| draft.has(name)) {
            let (own, found) = (draft.tensor(&tensor).unwrap(), whole.tensor(&tensor).unwrap());
            assert_eq!(found.to_f32(), own.to_f32(), "{name}: {tensor}");
        }
    }
}

/// What cannot be exported is refused, with the way out.
pub(crate) fn what_cannot_be_exported_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let standalone = shipped("smollm2-135m-instruct-standalone.gguf");
    run(folder.path(), &format!("export --draft {standalone} --out whole"));
    let cases = [
        (vec!["--draft", "ATTACHED", "--out", "x"], "`build --draft-kind standalone`"),
        (vec!["--draft", "STANDALONE", "--out", "x", "--dtype", "q8_0"], "--out NAME.gguf"),
        (vec!["--draft", "STANDALONE", "--out", "x.gguf", "--model", "whole"], "--model FILE.gguf"),
        (vec!["--draft", "missing", "--out", "x"], "missing"),
    ];
    for (arguments, way_out) in cases {
        let full: Vec<String> = arguments
            .iter()
            .map(|argument| match *argument {
                "ATTACHED" => shipped("smollm2-135m-instruct.gguf"),
                "STANDALONE" => standalone.clone(),
                other => other.to_owned(),
            })
            .collect();
        let full: Vec<&str> = std::iter::once("export").chain(full.iter().map(|a| &**a)).collect();
        let output = tools(folder.path(), &full);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(way_out), "{full:?}: {said}");
        assert!(!folder.path().join("x").exists() && !folder.path().join("x.gguf").exists());
    }
}
