//! Which device models compute on, and how much of its memory they may use: for the server and for `pleach-tools`.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::engine::EngineConfig;

/// Which device models compute on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args, Serialize)]
pub struct DeviceChoice {
    /// Where to compute: `cpu`, `cuda`, `cuda:N` for device N, or `auto`: the first CUDA device if there is one that runs
    /// the model, else the CPU.
    #[arg(long, env = "PLEACH_DEVICE", value_name = "DEVICE", default_value = "auto")]
    pub device: ComputeDevice,
}

/// Which device models compute on, and how much of its memory engines use.
#[derive(Debug, Clone, Copy, PartialEq, clap::Args, Serialize)]
pub struct DeviceArgs {
    /// The device.
    #[command(flatten)]
    #[serde(flatten)]
    pub choice: DeviceChoice,
    /// Share of a CUDA device's memory that is used, more than 0 and at most 1, with what other programs use of it: what
    /// weights and the largest pass leave of it is K/V cache.
    #[arg(
        long,
        env = "PLEACH_GPU_MEMORY_UTILIZATION",
        value_name = "SHARE",
        default_value_t = EngineConfig::default().gpu_memory_utilization,
        value_parser = part
    )]
    pub gpu_memory_utilization: f64,
}

/// A number above 0, at most 1.
fn part(text: &str) -> Result<f64, String> {
    let part = text.parse().ok().filter(|part| *part > 0.0 && *part <= 1.0);
    part.ok_or_else(|| "a number above 0, 1 at most".into())
}

/// Where models compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComputeDevice {
    /// The first CUDA device if there is one that runs the model, else the processor.
    Auto,
    /// This machine's processor.
    Cpu,
    /// A CUDA device, by its number.
    Cuda(usize),
}

impl FromStr for ComputeDevice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "auto" => Ok(Self::Auto),
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", number)) if number.parse::<u16>().is_ok() => {
                Ok(Self::Cuda(number.parse().expect("a number, just read")))
            }
            _ => Err("a device is `auto`, `cpu`, `cuda` or `cuda:N`".into()),
        }
    }
}

impl fmt::Display for ComputeDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// As the flag has it.
impl Serialize for ComputeDevice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::ComputeDevice;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for text in ["auto", "cpu", "cuda:0", "cuda:7"] {
            assert_eq!(text.parse::<ComputeDevice>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(ComputeDevice::Cuda(0)));
        for text in ["", "gpu", "cuda:", "cuda:-1", "cpu:0"] {
            assert!(text.parse::<ComputeDevice>().is_err(), "{text}");
        }
    }
}
