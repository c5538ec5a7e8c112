//! A Hugging Face folder whose weights may be quantised: its tensors as if they were not.

use std::path::{Path, PathBuf};

use half::f16;
use safetensors::Dtype;

use super::packed::{Packed, fp8};
use super::quantization::Quantization;
use super::summary::Sizes;
use super::{CheckpointError, RawTensor, TensorInfo, safetensors as files};
use pleach_kernels::DType;

/// What lies beside a module's quantised weights.
const BESIDE: [&str; 6] =
    ["qzeros", "scales", "g_idx", "weight_scale", "weight_scale_inv", "input_scale"];

/// All tensors of a folder.
#[derive(Debug)]
pub(super) struct Folder {
    files: files::Folder,
    quantization: Option<Quantization>,
}

impl Folder {
    pub(super) fn open(folder: &Path) -> Result<Self, CheckpointError> {
        let quantization = Quantization::of(folder)?;
        Ok(Self { files: files::Folder::open(folder)?, quantization })
    }

    pub(super) fn files(&self) -> Vec<PathBuf> {
        self.files.files()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.files.has(name) || self.packed(name).is_some()
    }

    /// The names of all tensors but those that only say how others are quantised.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        let quantized = self.quantization.is_some();
        self.files.names().filter(move |name| {
            let kind = name.rsplit('.').next().unwrap_or_default();
            !(quantized && (kind == "qweight" || BESIDE.contains(&kind)))
        })
    }

    /// Adds all tensors to `sizes`: what says how others are quantised with its bytes alone.
    pub(super) fn measure(&self, sizes: &mut Sizes) {
        for (name, format, shape, bytes) in self.files.tensors() {
            let kind = name.rsplit('.').next().unwrap_or_default();
            match self.quantization {
                Some(Quantization::Gptq { .. }) if kind == "qweight" => {
                    sizes.add("GPTQ", &[shape, &[8]].concat(), bytes);
                }
                Some(Quantization::Awq { .. }) if kind == "qweight" => {
                    sizes.add("AWQ", &[shape, &[8]].concat(), bytes);
                }
                Some(_) if BESIDE.contains(&kind) => sizes.add("", &[0], bytes),
                _ => sizes.add(&format!("{format:?}"), shape, bytes),
            }
        }
    }

    /// The module of a weight that is packed.
    fn packed<'a>(&self, name: &'a str) -> Option<&'a str> {
        let packs =
            matches!(self.quantization, Some(Quantization::Gptq { .. } | Quantization::Awq { .. }));
        let module = name.strip_suffix(".weight").filter(|_| packs && !self.files.has(name))?;
        self.files.has(&format!("{module}.qweight")).then_some(module)
    }

    /// The module of a weight that is an 8-bit float, where the folder says that it has such.
    fn fp8<'a>(&self, name: &'a str) -> Option<&'a str> {
        let module = name.strip_suffix(".weight")?;
        let (format, _) = self.files.format(name)?;
        let fp8 = matches!(self.quantization, Some(Quantization::Fp8 { .. }));
        (fp8 && format == Dtype::F8_E4M3).then_some(module)
    }

    pub(super) fn info(&self, name: &str) -> Result<Option<TensorInfo>, CheckpointError> {
        if let Some(module) = self.packed(name) {
            let (outputs, inputs) = self.packed_sizes(module)?;
            return Ok(Some(TensorInfo { dtype: DType::Q8_0, shape: vec![outputs, inputs] }));
        }
        if self.fp8(name).is_some() {
            let shape = self.files.format(name).map_or_else(Vec::new, |(_, shape)| shape.to_vec());
            return Ok(Some(TensorInfo { dtype: DType::BF16, shape }));
        }
        self.files.info(name)
    }

    pub(super) fn read(&mut self, name: &str) -> Result<Option<RawTensor>, CheckpointError> {
        let data = match (self.packed(name), self.fp8(name)) {
            (Some(module), _) => self.read_packed(module)?,
            (None, Some(module)) => self.read_fp8(name, module)?,
            (None, None) => return self.files.read(name),
        };
        Ok(self.info(name)?.map(|TensorInfo { dtype, shape }| RawTensor { dtype, shape, data }))
    }

    /// Outputs and inputs of a packed weight.
    fn packed_sizes(&self, module: &str) -> Result<(usize, usize), CheckpointError> {
        let name = format!("{module}.qweight");
        let awq = matches!(self.quantization, Some(Quantization::Awq { .. }));
        let sizes = match self.files.format(&name) {
            Some((Dtype::I32, &[inputs, words])) if awq => words.checked_mul(8).zip(Some(inputs)),
            Some((Dtype::I32, &[words, outputs])) => Some(outputs).zip(words.checked_mul(8)),
            _ => None,
        };
        let fits = |(outputs, inputs): &(usize, usize)| {
            outputs.is_multiple_of(8) && inputs.is_multiple_of(32) && *inputs > 0
        };
        sizes.filter(fits).ok_or_else(|| {
            let format = self.files.format(&name);
            let reason = format!(
                "{format:?} is no matrix of words of 8 codes, of multiples of 8 outputs and 32 inputs"
            );
            self.files.error(&name, reason)
        })
    }

    fn read_packed(&mut self, module: &str) -> Result<Vec<u8>, CheckpointError> {
        let (outputs, inputs) = self.packed_sizes(module)?;
        let [weights, zeros, scales, index] =
            ["qweight", "qzeros", "scales", "g_idx"].map(|kind| format!("{module}.{kind}"));
        let Some(&[count, _]) = self.files.format(&scales).map(|(_, shape)| shape) else {
            let reason = format!("there is no matrix {scales} beside it");
            return Err(self.files.error(&weights, reason));
        };
        for (name, format, shape) in
            [(&scales, None, [count, outputs]), (&zeros, Some(Dtype::I32), [count, outputs / 8])]
        {
            let found = self.files.format(name);
            let fits = found.is_some_and(|(own, sizes)| {
                format.is_none_or(|format| format == own) && sizes == shape
            });
            if !fits {
                let reason = format!("{name} beside it is {found:?}, not of shape {shape:?}");
                return Err(self.files.error(&weights, reason));
            }
        }
        let size = match self.quantization {
            Some(Quantization::Gptq { group, .. } | Quantization::Awq { group }) => group,
            _ => None,
        };
        let size = size.unwrap_or(inputs);
        let groups: Vec<usize> = match self.files.format(&index) {
            None => (0..inputs).map(|input| input / size).collect(),
            Some((Dtype::I32, &[len])) if len == inputs => {
                let bytes = self.files.bytes(&index)?;
                bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b) as usize).collect()
            }
            found => {
                let reason = format!("{found:?} is no list of {inputs} groups");
                return Err(self.files.error(&index, reason));
            }
        };
        if groups.iter().any(|group| *group >= count) {
            let reason = format!("{inputs} inputs in groups of {size} do not fit {count} scales");
            return Err(self.files.error(&weights, reason));
        }
        let values = self.files.read(&scales)?.map_or_else(Vec::new, |tensor| tensor.to_f32());
        let values: Vec<f16> = values.into_iter().map(f16::from_f32).collect();
        if values.iter().any(|value| !value.is_finite()) {
            return Err(self
                .files
                .error(&scales, "has a scale that is more than f16 holds, or no number"));
        }
        let words = [self.files.bytes(&weights)?, self.files.bytes(&zeros)?];
        let packed =
            Packed { words: [&words[0], &words[1]], scales: &values, groups: &groups, outputs };
        Ok(match self.quantization {
            Some(Quantization::Gptq { zeros_less_one, .. }) => packed.gptq(zeros_less_one),
            _ => packed.awq(),
        })
    }

    fn read_fp8(&mut self, name: &str, module: &str) -> Result<Vec<u8>, CheckpointError> {
        let kinds = ["weight_scale_inv", "weight_scale"];
        let beside = kinds.map(|kind| format!("{module}.{kind}"));
        let Some(beside) = beside.iter().find(|name| self.files.has(name)) else {
            let reason = "its format is F8_E4M3, and there is no weight_scale beside it";
            return Err(self.files.error(name, reason));
        };
        let shape = self.files.format(name).map_or_else(Vec::new, |(_, shape)| shape.to_vec());
        let scales = self.files.read(beside)?;
        let scales = scales.map(|tensor| (tensor.to_f32(), tensor.shape));
        let (values, sizes) = scales.unwrap_or_default();
        let [block_rows, block_width] = match self.quantization {
            Some(Quantization::Fp8 { block }) => block,
            _ => [1; 2],
        };
        let error = || {
            let reason = format!("scales of shape {sizes:?} beside weights of {shape:?}");
            self.files.error(beside, reason)
        };
        let &[rows, width] = &shape[..] else { return Err(error()) };
        let blocks = [rows.div_ceil(block_rows), width.div_ceil(block_width)];
        // Rows of scales, and what each of them is for.
        let (height, across, per_row) = match sizes[..] {
            _ if values.len() == 1 => (rows.max(1), width.max(1), 1),
            [count] | [count, 1] if count == rows => (1, width.max(1), 1),
            [down, across] if [down, across] == blocks => (block_rows, block_width, across),
            _ => return Err(error()),
        };
        let weights = self.files.bytes(name)?;
        Ok(fp8(&weights, width, |row, at| values[row / height * per_row + at / across]))
    }
}
