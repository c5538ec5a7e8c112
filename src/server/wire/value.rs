//! Values of fields that several types share.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A 32-bit number. What lies beside a whole number is not rounded to it, since ranges end there.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(from = "f64", into = "f32")]
#[schemars(with = "f32", inline)]
pub(crate) struct Number(pub(crate) f32);

impl From<f64> for Number {
    fn from(wide: f64) -> Self {
        let near = wide as f32;
        Self(match f64::from(near) {
            rounded if rounded == wide || rounded.fract() != 0.0 => near,
            rounded if rounded < wide => near.next_up(),
            _ => near.next_down(),
        })
    }
}

impl From<f32> for Number {
    fn from(number: f32) -> Self {
        Self(number)
    }
}

impl From<Number> for f32 {
    fn from(number: Number) -> Self {
        number.0
    }
}

/// Only `false`.
#[derive(Deserialize, JsonSchema)]
#[serde(try_from = "bool")]
#[schemars(with = "bool", extend("const" = false))]
pub(crate) struct False;

/// Only `true`.
#[derive(Deserialize, JsonSchema)]
#[serde(try_from = "bool")]
#[schemars(with = "bool", extend("const" = true))]
pub(crate) struct True;

impl TryFrom<bool> for False {
    type Error = &'static str;

    fn try_from(on: bool) -> Result<Self, Self::Error> {
        if on { Err("`true` is not supported by this server; leave it out") } else { Ok(Self) }
    }
}

impl TryFrom<bool> for True {
    type Error = &'static str;

    fn try_from(on: bool) -> Result<Self, Self::Error> {
        if on { Ok(Self) } else { Err("`false` is not supported by this server; leave it out") }
    }
}
