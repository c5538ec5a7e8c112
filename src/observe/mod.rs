//! What the server tells of itself and of its traffic: the recorder behind the metrics, energy meters, spans, recorded
//! answers.

pub mod energy;
pub mod exporter;
mod gpu_energy;
pub mod spans;
pub mod traffic;
