//! `build --recipe draft`: a draft for the server.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, ensure};
use pleach::checkpoint::source::Source;
use pleach::checkpoint::write::LazyTensor;
use pleach::checkpoint::{Checkpoint, RawTensor};
use pleach::model::{ModelConfig, tensor_names};
use pleach_kernels::DType;

use super::args::Args;
use super::recorded;
use super::steps::{begin, cut, for_minutes, open};
use crate::commands::evaluate;
use crate::commands::generate;
use crate::commands::pack;
use crate::commands::prune::{self, DraftKind};
use crate::commands::report;
use crate::commands::train;
use crate::shared::attach;
use crate::shared::endpoint;
use crate::shared::measure_args::MeasureArgs;
use crate::shared::model_folder::save_folder;

/// Shares of the budget for writing answers and for training. Measuring, packing and evaluating take the rest, and the
/// target's states, which an attached drafter reads before it trains. Fixed, so that a build that is started again asks
/// every step for what it asked before.
const STANDALONE: [f64; 2] = [0.37, 0.55];
const ATTACHED: [f64; 2] = [0.22, 0.55];
/// FLOPs of the draft that are aimed at, as a share of the target's.
const FLOP_SHARE: f64 = 0.25;

pub(super) fn run(args: &Args) -> Result<()> {
    ensure!(args.paper.epochs.is_none(), "--epochs goes with --recipe paper");
    let started = Instant::now();
    let out = &args.out;
    let (mut manifest, checkpoint) = open(args)?;
    let config = &checkpoint.config;
    let mut earlier = args.from.as_deref().map(Checkpoint::open).transpose()?;
    earlier.iter().try_for_each(|draft| manifest.model(draft))?;
    let begun = begin(args, &manifest)?;
    let (start, keep) = match (&args.from, &mut earlier) {
        (Some(from), Some(start)) => {
            let same = |of: &ModelConfig| (of.hidden_size, of.vocab_size, of.num_attention_heads);
            ensure!(
                same(&start.config) == same(config),
                "--from {}: was not cut out of {}",
                from.display(),
                args.model.model
            );
            println!("1/6, 2/6 going on from {}", from.display());
            let blocks = start.config.num_hidden_layers;
            let folder = if from.is_dir() { from.clone() } else { unpack(args, start)? };
            (narrowed(args, folder, &start.config)?, blocks)
        }
        _ if args.draft_kind == DraftKind::Attached => attach(args, config)?,
        _ => {
            let budget = FLOP_SHARE * config.flops_per_token(512, config.vocab_size) as f64;
            let blocks = budget - config.head_flops(args.draft_vocab) as f64;
            let intermediate_size = args.intermediate_size.unwrap_or(config.intermediate_size);
            let block = ModelConfig { intermediate_size, ..config.clone() }.block_flops(512);
            let keep =
                ((blocks / block as f64).max(1.0) as usize).min(config.num_hidden_layers - 1);
            cut(args, config, keep)?
        }
    };
    let attached = earlier
        .as_ref()
        .map_or(args.draft_kind == DraftKind::Attached, |draft| draft.attachment.is_some());
    let [answering, training] = if attached { ATTACHED } else { STANDALONE };
    let minutes = args.answers.is_none().then_some(args.minutes * answering);
    let answers = out.join("answers.jsonl");
    let (max_prompt_tokens, top_logprobs, batch) = (768, 16, 32);
    if let Some(recorded) = &args.from_traffic {
        println!("3/6 the model reads recorded answers{}", for_minutes(minutes));
        recorded::run(&recorded::Args {
            model: args.model.clone(),
            device: args.device,
            traffic: recorded.clone(),
            out: answers.clone(),
            limit: args.answers,
            max_tokens: args.max_tokens,
            max_prompt_tokens,
            top_logprobs,
            batch,
            minutes,
        })?;
    } else {
        println!("3/6 the model writes answers{}", for_minutes(minutes));
        generate::run(&generate::Args {
            model: args.model.clone(),
            device: args.device,
            prompts: args.prompts.clone(),
            out: answers.clone(),
            limit: args.answers,
            max_tokens: args.max_tokens,
            max_prompt_tokens,
            temperature: vec![0.0, 0.0, 0.8],
            top_logprobs,
            batch,
            minutes,
            seed: args.seed,
            endpoint: endpoint::Args::default(),
        })?;
    }
    let minutes = args.steps.is_none().then_some(args.minutes * training);
    println!("4/6 training{}", for_minutes(minutes));
    train::run(&train::Args {
        minutes,
        steps: args.steps,
        draft_vocab: args.draft_vocab,
        checkpoint_seconds: args.checkpoint_seconds,
        seed: args.seed,
        threads: args.model.threads,
        ..train::Args::for_draft(&args.model, args.device.choice, start, answers, out.join("train"))
    })?;
    println!("5/6 packing");
    let draft = out.join("draft.gguf");
    pack::run(&pack::Args {
        model: out.join("train/model"),
        out: draft.clone(),
        dtype: pack::Format::Q4_0,
        name: format!("{} draft", checkpoint.name),
    })?;
    println!("6/6 evaluating");
    let evaluation = evaluate::run(&evaluate::Args {
        measure: MeasureArgs::of(
            &args.model,
            args.device,
            Source::Path(draft.clone()),
            args.eval_prompts.clone(),
        ),
        num_speculative_tokens: 4,
        seed: args.seed,
        batch: 8,
        samples: 8,
        json: Some(out.join("evaluation.json")),
    })?;
    manifest.write(
        &out.join("build.json"),
        serde_json::json!({"keep_blocks": keep, "evaluation": evaluation}),
    )?;
    let _ = std::fs::remove_file(&begun);
    report::write(out)?;
    println!(
        "done in {:.1} minutes: pleach --model {} --draft {}",
        started.elapsed().as_secs_f64() / 60.0,
        args.model.model,
        draft.display()
    );
    Ok(())
}

/// Makes a folder of a packed draft that can be trained: its blocks, with the embedding and the head of the
/// model it was cut out of.
fn unpack(args: &Args, draft: &mut Checkpoint) -> Result<PathBuf> {
    let mut model = args.model.open()?;
    let mut tensors: Vec<(RawTensor, String)> = Vec::new();
    for name in tensor_names(&draft.config, |name| draft.has(name)) {
        tensors.push((draft.tensor(&name)?, name));
    }
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        if model.has(name) {
            tensors.push((model.tensor(name)?, name.to_owned()));
        }
    }
    let lazy = tensors.iter().map(|(tensor, name)| LazyTensor {
        name: name.clone(),
        dtype: DType::F32,
        shape: tensor.shape.clone(),
        values: Box::new(|| Ok(tensor.to_f32())),
    });
    model.config = ModelConfig {
        tie_word_embeddings: model.config.tie_word_embeddings,
        bos_token_id: model.config.bos_token_id,
        eos_token_ids: model.config.eos_token_ids.clone(),
        ..draft.config.clone()
    };
    model.attachment = draft.attachment.clone();
    let folder = args.out.join("unpacked");
    save_folder(&folder, &model, lazy.collect(), None)?;
    Ok(folder)
}

/// The draft in a folder, or where --intermediate-size leaves fewer of its neurons, one made of it.
fn narrowed(args: &Args, folder: PathBuf, config: &ModelConfig) -> Result<PathBuf> {
    let all = config.intermediate_size;
    let Some(neurons) = args.intermediate_size.filter(|wanted| *wanted != all) else {
        return Ok(folder);
    };
    let (out, device) = (args.out.join("pruned"), args.device.choice);
    prune::run(&prune::Args::narrowed(&args.model, device, out.clone(), folder, neurons))?;
    Ok(out)
}

/// Blocks that an attached drafter keeps.
const ATTACHED_BLOCKS: usize = 4;

/// Keeps --keep-blocks and starts their projections. Returns the folder and the number of blocks.
fn attach(args: &Args, config: &ModelConfig) -> Result<(PathBuf, usize)> {
    let total = config.num_hidden_layers;
    let keep = args.keep_blocks.unwrap_or(ATTACHED_BLOCKS.min(total.saturating_sub(1)));
    ensure!((1..total).contains(&keep), "--keep-blocks must be 1 to {}", total - 1);
    println!("1/6, 2/6 attaching {keep} of {total} blocks");
    let pruned = args.out.join("pruned");
    let neurons = args.intermediate_size.unwrap_or_else(|| attach::neurons(config));
    prune::run(&prune::Args {
        intermediate_size: Some(neurons),
        ..prune::Args::attached(&args.model, args.device.choice, pruned.clone(), keep, total)
    })?;
    Ok((pruned, keep))
}
