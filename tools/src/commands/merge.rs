//! `merge`: what was trained apart becomes one model.

use std::cell::RefCell;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use pleach::checkpoint::Checkpoint;
use pleach::checkpoint::adapter::{Adapter, CONFIG, TENSORS};
use pleach::checkpoint::write::LazyTensor;
use pleach::model::tensor_names;
use pleach_kernels::DType;
use pleach_train::slerp;
use serde::Serialize;

use crate::shared::manifest::Manifest;
use crate::shared::model_folder::save_folder;

/// Folds a LoRA adapter into its model, or merges models of one architecture along the arc between
/// their weights (SLERP), tensor by tensor.
///
/// Two models: --weights 0.7,0.3 goes 30 % of the way from the first to the second. More are taken in
/// one after the other, each by its share of the weights so far. Writes a Hugging Face folder.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub(crate) struct Args {
    /// A model, a Hugging Face folder; given several times, the models are merged.
    #[arg(long, required = true, value_name = "DIR")]
    pub(crate) model: Vec<PathBuf>,
    /// An adapter in PEFT's format to fold into the model.
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
    /// Weight of each model. Default: all the same.
    #[arg(long, value_delimiter = ',', value_name = "W,W")]
    pub(crate) weights: Vec<f64>,
    /// Folder to write.
    #[arg(long, env = "PLEACH_OUT", value_name = "DIR")]
    pub(crate) out: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let weights = weights(args)?;
    let mut manifest = Manifest::new("merge", args)?;
    let mut models = Vec::new();
    for path in &args.model {
        let checkpoint = Checkpoint::open(path)?;
        manifest.model(&checkpoint)?;
        models.push(checkpoint);
    }
    let adapter = args.adapter.as_deref().map(Adapter::read).transpose()?;
    if let Some(folder) = &args.adapter {
        [CONFIG, TENSORS].iter().try_for_each(|name| manifest.file(&folder.join(name)))?;
    }
    let note = args.out.join("merge.json");
    if manifest.is_done(&note) {
        eprintln!("{} is done already", args.out.display());
        return Ok(());
    }

    let names = all_names(&models[0]);
    let mut shapes = Vec::new();
    for name in &names {
        let shape = models[0].info(name)?.shape;
        for (path, other) in args.model.iter().zip(&models).skip(1) {
            ensure!(
                other.has(name) && other.info(name)?.shape == shape,
                "{}: {name} is missing or has another shape than in {}",
                path.display(),
                args.model[0].display()
            );
        }
        shapes.push(shape);
    }
    for (path, other) in args.model.iter().zip(&models).skip(1) {
        ensure!(
            all_names(other) == names,
            "{} has other tensors than {}",
            path.display(),
            args.model[0].display()
        );
    }
    for (name, factors) in adapter.iter().flat_map(Adapter::factors) {
        let shape = factors.shape();
        let found = names.iter().position(|other| other == name).map(|at| &shapes[at]);
        let found = found.with_context(|| format!("--adapter: the model has no {name}"))?;
        ensure!(
            found[..] == shape,
            "--adapter: {name} is {shape:?} there and {found:?} in the model"
        );
    }

    let vocab = draft_vocab(&models);
    let like = Checkpoint::open(&args.model[0])?;
    let models = RefCell::new(models);
    let tensors: Vec<LazyTensor> = names
        .into_iter()
        .zip(shapes)
        .map(|(name, shape)| {
            let (models, weights, adapter) = (&models, &weights, &adapter);
            let tensor = name.clone();
            let values = move || {
                let mut models = models.borrow_mut();
                let (first, others) = models.split_first_mut().expect("--model is required");
                let (mut merged, mut sum) = (first.tensor(&tensor)?.to_f32(), weights[0]);
                for (model, weight) in others.iter_mut().zip(&weights[1..]) {
                    sum += weight;
                    merged = slerp(&merged, &model.tensor(&tensor)?.to_f32(), weight / sum);
                }
                if let Some(adapter) = adapter {
                    adapter.fold(&tensor, &mut merged);
                }
                Ok(merged)
            };
            LazyTensor { name, dtype: DType::F32, shape, values: Box::new(values) }
        })
        .collect();
    save_folder(&args.out, &like, tensors, vocab.as_deref())?;
    manifest.write(&note, serde_json::json!({"weights": weights}))?;
    println!("{}", args.out.display());
    Ok(())
}

/// A weight above 0 for every model.
fn weights(args: &Args) -> Result<Vec<f64>> {
    let models = args.model.len();
    ensure!(
        args.adapter.is_some() || models > 1,
        "say what to merge: a second --model, or an --adapter"
    );
    ensure!(
        args.adapter.is_none() || models == 1,
        "--adapter goes with one --model; fold it into that first, then merge the models"
    );
    if args.weights.is_empty() {
        return Ok(vec![1.0; models]);
    }
    ensure!(args.weights.len() == models, "--weights: {} for {models} models", args.weights.len());
    let fine = |weight: &f64| weight.is_finite() && *weight > 0.0;
    ensure!(args.weights.iter().all(fine), "--weights: numbers above 0 are needed");
    Ok(args.weights.clone())
}

/// Every tensor of a model.
fn all_names(checkpoint: &Checkpoint) -> Vec<String> {
    let mut names = tensor_names(&checkpoint.config, |name| checkpoint.has(name));
    let ends = ["model.embed_tokens.weight", "lm_head.weight"];
    names.extend(ends.into_iter().filter(|name| checkpoint.has(name)).map(str::to_owned));
    names
}

/// Tokens of the merged head: those of any of the models, or all where one has them all.
fn draft_vocab(models: &[Checkpoint]) -> Option<Vec<u32>> {
    let mut all = Vec::new();
    for model in models {
        all.extend(model.draft_vocab.as_deref()?);
    }
    all.sort_unstable();
    all.dedup();
    Some(all)
}
