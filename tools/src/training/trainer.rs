//! The training run: steps over shuffled packs on several threads, validation, checkpoints.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use candle_core::Tensor;
use candle_core::backprop::GradStore;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::distill_loss::Tally;
use super::lesson::Lesson;
use super::options::{Budget, Options};
use super::parameters::Gradients;
use super::weights::Weights;
use super::{Parameters, TrainError};
use pleach::checkpoint::safetensors_header;
use pleach::checkpoint::write::{self, LazyTensor};
use pleach_kernels::DType;
use pleach_kernels::training::AdamW;

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Optimiser steps so far.
    pub step: u32,
    /// Seconds spent in steps so far.
    pub seconds: f64,
    /// Tokens of answers seen so far.
    pub tokens: u64,
    /// Passes over the answers, this one included.
    pub epoch: u32,
    /// Step size.
    pub learning_rate: f32,
    /// Mean loss of the step's tokens.
    pub loss: f64,
    /// Share of the step's tokens whose most likely token is the target's.
    pub agreement: f64,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f32,
}

/// Where a run stands; with the slots of [`Parameters`] all it takes to go on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct State {
    step: u32,
    seconds: f64,
    tokens: u64,
    epoch: u32,
    /// Packs of the epoch already used.
    used: usize,
}

/// A training run.
pub struct Trainer<L> {
    lesson: L,
    parameters: Parameters,
    training: Vec<usize>,
    validation: Vec<usize>,
    packs: Vec<Vec<usize>>,
    options: Options,
    workers: Arc<rayon::ThreadPool>,
    state: State,
}

impl<L: Lesson> Trainer<L> {
    /// A run from the start.
    ///
    /// # Errors
    /// [`TrainError::Options`] where nothing is left to train on.
    pub fn new(lesson: L, parameters: Parameters, options: Options) -> Result<Self, TrainError> {
        let mut order: Vec<usize> =
            (0..lesson.data().len()).filter(|&index| lesson.teaches(index)).collect();
        let answers = order.len();
        let kept = (answers as f64 * options.validation).ceil() as usize;
        fastrand::Rng::with_seed(options.seed).shuffle(&mut order);
        let training = order.split_off(kept.min(order.len()));
        if training.is_empty() {
            return Err(TrainError::Options(format!(
                "{answers} answers leave none to train on beside {kept} for validation"
            )));
        }
        let workers = rayon::ThreadPoolBuilder::new().num_threads(options.threads.max(1)).build();
        let workers = workers.map_err(|e| TrainError::Options(format!("threads: {e}")))?;
        let mut trainer = Self {
            lesson,
            parameters,
            training,
            validation: order,
            packs: Vec::new(),
            options,
            workers: Arc::new(workers),
            state: State::default(),
        };
        trainer.start_epoch();
        Ok(trainer)
    }

    fn start_epoch(&mut self) {
        let mut order = self.training.clone();
        let seed = self.options.seed ^ u64::from(self.state.epoch + 1) << 32;
        fastrand::Rng::with_seed(seed).shuffle(&mut order);
        self.packs = self.lesson.data().group(&order, self.options.rows);
    }

    /// Share of the budget that is spent, 0 to 1.
    #[must_use]
    pub fn progress(&self) -> f64 {
        let spent = match self.options.budget {
            Budget::Steps(steps) => f64::from(self.state.step) / f64::from(steps.max(1)),
            Budget::Seconds(seconds) => self.state.seconds / seconds.max(1e-9),
            Budget::Epochs(epochs) => self.epochs() / epochs.max(1e-9),
        };
        spent.min(1.0)
    }

    /// Passes over the answers so far, with the part of the last.
    #[must_use]
    pub fn epochs(&self) -> f64 {
        f64::from(self.state.epoch) + self.state.used as f64 / self.packs.len() as f64
    }

    /// Optimiser steps so far.
    #[must_use]
    pub fn num_steps(&self) -> u32 {
        self.state.step
    }

    /// What is learnt.
    #[must_use]
    pub fn lesson(&self) -> &L {
        &self.lesson
    }

    /// What has been trained.
    #[must_use]
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Answers kept for validation, and for training.
    #[must_use]
    pub fn split(&self) -> (usize, usize) {
        (self.validation.len(), self.training.len())
    }

    fn learning_rate(&self) -> f32 {
        let (progress, warmup) = (self.progress(), self.options.warmup);
        let factor = if progress < warmup {
            // The first step moves too.
            progress.max(warmup / 20.0) / warmup
        } else {
            let through = (progress - warmup) / (1.0 - warmup).max(1e-9);
            0.02 + 0.98 * 0.5 * (1.0 + (std::f64::consts::PI * through).cos())
        };
        self.options.learning_rate * factor as f32
    }

    /// One optimiser step.
    ///
    /// # Errors
    /// [`TrainError::Diverged`], or what candle says.
    pub fn step(&mut self) -> Result<Point, TrainError> {
        let workers = Arc::clone(&self.workers);
        workers.install(|| self.step_inside())
    }

    fn step_inside(&mut self) -> Result<Point, TrainError> {
        let started = Instant::now();
        let mut packs = Vec::with_capacity(self.options.accumulation);
        while packs.len() < self.options.accumulation {
            if self.state.used == self.packs.len() {
                // The last step may be smaller: no answer is seen once more than others.
                let by_epochs = matches!(self.options.budget, Budget::Epochs(_));
                if by_epochs && !packs.is_empty() && self.progress() >= 1.0 {
                    break;
                }
                self.state.epoch += 1;
                self.state.used = 0;
                self.start_epoch();
            }
            packs.push(self.packs[self.state.used].clone());
            self.state.used += 1;
        }
        let learning_rate = self.learning_rate();
        let leaves = self.parameters.leaves()?;
        let (tally, gradients) = self.gradients(&leaves, &packs)?;
        drop(leaves);
        self.state.step += 1;
        let loss = tally.loss / tally.rows.max(1) as f64;
        let step = self.state.step;
        if !loss.is_finite() {
            return Err(TrainError::Diverged { step, what: "loss", value: loss });
        }
        let constants = AdamW {
            learning_rate,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: self.options.weight_decay,
            step,
            gradient_scale: 1.0,
        };
        let weight = tally.rows.max(1) as f32;
        let gradient_norm =
            self.parameters.update(&gradients, constants, weight, self.options.max_norm)?;
        if !gradient_norm.is_finite() {
            let (what, value) = ("norm of the gradient", gradient_norm.into());
            return Err(TrainError::Diverged { step, what, value });
        }
        self.state.tokens += tally.rows;
        self.state.seconds += started.elapsed().as_secs_f64();
        Ok(Point {
            step,
            seconds: self.state.seconds,
            tokens: self.state.tokens,
            epoch: self.state.epoch + 1,
            learning_rate,
            loss,
            agreement: tally.agree as f64 / tally.rows.max(1) as f64,
            gradient_norm,
        })
    }

    /// Gradients of the summed loss of several packs, which are added in their order: a run has the same bits on any
    /// number of threads.
    fn gradients(
        &self,
        leaves: &Weights,
        packs: &[Vec<usize>],
    ) -> Result<(Tally, Gradients), TrainError> {
        let (mut tally, mut sums) = (Tally::default(), Gradients::new());
        let of_pack = |pack: &Vec<usize>| {
            let (loss, tally) = self.lesson.loss(leaves, pack, true)?;
            Ok((tally, collect(&loss.backward()?, leaves)?))
        };
        self.of_packs(packs, of_pack, |(part, gradients)| {
            tally.add(&part);
            gradients.into_iter().for_each(|(name, values)| add(sums.entry(name), values));
        })?;
        Ok((tally, sums))
    }

    /// Computes something of each pack and takes it in, in their order. Threads that are left share the rows of each
    /// pack; more packs at once would only fill memory, as two would on a device.
    fn of_packs<T: Send>(
        &self,
        packs: &[Vec<usize>],
        compute: impl Fn(&Vec<usize>) -> candle_core::Result<T> + Sync,
        mut take: impl FnMut(T),
    ) -> candle_core::Result<()> {
        let at_once = match self.parameters.backend().is_fused() {
            true => self.workers.current_num_threads(),
            false => 1,
        };
        for packs in packs.chunks(at_once) {
            let parts: Vec<T> =
                packs.par_iter().map(&compute).collect::<candle_core::Result<_>>()?;
            parts.into_iter().for_each(&mut take);
        }
        Ok(())
    }

    /// Mean loss and agreement over the answers kept for validation; `None` where there are none.
    ///
    /// # Errors
    /// What candle says.
    pub fn validate(&self) -> Result<Option<(f64, f64)>, TrainError> {
        if self.validation.is_empty() {
            return Ok(None);
        }
        let packs = self.lesson.data().group(&self.validation, self.options.rows);
        let sum = self.workers.install(|| -> candle_core::Result<Tally> {
            let leaves = self.parameters.leaves()?.detached();
            let mut sum = Tally::default();
            let of_pack = |pack: &Vec<usize>| Ok(self.lesson.loss(&leaves, pack, false)?.1);
            self.of_packs(&packs, of_pack, |part| sum.add(&part))?;
            Ok(sum)
        })?;
        let rows = sum.rows.max(1) as f64;
        Ok(Some((sum.loss / rows, sum.agree as f64 / rows)))
    }

    /// Writes all it takes to go on to one file, whole or not at all.
    ///
    /// # Errors
    /// What the file system says.
    pub fn save(&self, path: &Path) -> Result<(), TrainError> {
        let state = serde_json::to_string(&self.state).map_err(|e| TrainError::file(path, e))?;
        let arrays = self.parameters.slots.iter().flat_map(|slot| {
            let [first, second] = &slot.moments;
            [("value", &slot.value), ("m", first), ("v", second)].map(|(kind, values)| LazyTensor {
                name: format!("{}/{kind}", slot.name),
                dtype: DType::F32,
                shape: vec![values.len()],
                values: Box::new(|| Ok(values.clone())),
            })
        });
        let arrays: Vec<_> = arrays.collect();
        Ok(write::safetensors_file(path, &arrays, &[("state", &state)])?)
    }

    /// Goes on where the run that wrote `path` stood.
    ///
    /// # Errors
    /// [`TrainError::File`] where the file is damaged or belongs to another model.
    pub fn resume(&mut self, path: &Path) -> Result<(), TrainError> {
        let error = |reason: String| TrainError::file(path, reason);
        let io = |e: std::io::Error| TrainError::file(path, e);
        let file = File::open(path).map_err(io)?;
        let (header, data) = safetensors_header(path, &file)?;
        let state = header.metadata().as_ref().and_then(|about| about.get("state"));
        let state = state.ok_or_else(|| error("has no state of a training run".into()))?;
        let state: State = serde_json::from_str(state).map_err(|e| error(e.to_string()))?;
        for slot in &mut self.parameters.slots {
            let [first, second] = &mut slot.moments;
            for (kind, values) in [("value", &mut slot.value), ("m", first), ("v", second)] {
                let name = format!("{}/{kind}", slot.name);
                let info = header.info(&name).ok_or_else(|| error(format!("has no {name}")))?;
                let (start, end) = info.data_offsets;
                if end.checked_sub(start) != Some(size_of_val(&values[..])) {
                    return Err(error(format!("{name} has another size than the model's")));
                }
                let at = data + start as u64;
                file.read_exact_at(bytemuck::cast_slice_mut(values), at).map_err(io)?;
            }
        }
        self.state = state;
        self.start_epoch();
        self.state.used = self.state.used.min(self.packs.len());
        Ok(())
    }
}

/// The gradients of the leaves.
fn collect(store: &GradStore, leaves: &Weights) -> candle_core::Result<Gradients> {
    let moving = leaves.iter().filter_map(|(name, leaf)| Some((name, store.get(leaf)?)));
    moving
        .map(|(name, gradient): (&String, &Tensor)| {
            Ok((name.clone(), gradient.flatten_all()?.to_vec1()?))
        })
        .collect()
}

fn add(entry: std::collections::btree_map::Entry<'_, String, Vec<f32>>, values: Vec<f32>) {
    match entry {
        std::collections::btree_map::Entry::Vacant(entry) => {
            entry.insert(values);
        }
        std::collections::btree_map::Entry::Occupied(mut entry) => {
            pleach_kernels::add_assign(entry.get_mut(), &values);
        }
    }
}
