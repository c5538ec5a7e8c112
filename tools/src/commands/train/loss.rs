//! What training makes small.

use std::str::FromStr;

use pleach_kernels::training::{Divergence, Mixture};
use serde::Serialize;

/// What is learnt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Loss {
    /// The target's distribution.
    Distribution(Divergence),
    /// The answers' tokens (cross-entropy).
    Ce,
}

impl Loss {
    pub(crate) const KL: Self = Self::Distribution(Divergence::FORWARD_KL);
}

impl FromStr for Loss {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "ce" => return Ok(Self::Ce),
            "adaptive" => return Ok(Self::Distribution(Divergence::Adaptive)),
            _ => {}
        }
        let mut all = Mixture { forward_kl: 0.0, reverse_kl: 0.0, total_variation: 0.0 };
        for part in text.split(',') {
            let (name, weight) = part.split_once('=').unwrap_or((part, "1"));
            let place = match name.trim() {
                "kl" => &mut all.forward_kl,
                "reverse-kl" => &mut all.reverse_kl,
                "tv" => &mut all.total_variation,
                other => {
                    return Err(format!(
                        "`{other}` is none of kl, reverse-kl, tv and, alone, adaptive and ce"
                    ));
                }
            };
            *place =
                weight.trim().parse().ok().filter(|w: &f32| w.is_finite() && *w > 0.0).ok_or(
                    format!("`{part}`: a weight is a number above 0, as in kl=0.5,tv=0.5"),
                )?;
        }
        Ok(Self::Distribution(Divergence::Mixture(all)))
    }
}

impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let d = match self {
            Self::Ce => return f.write_str("ce"),
            Self::Distribution(Divergence::Adaptive) => return f.write_str("adaptive"),
            Self::Distribution(Divergence::Mixture(mixture)) => mixture,
        };
        let all = [("kl", d.forward_kl), ("reverse-kl", d.reverse_kl), ("tv", d.total_variation)];
        let parts: Vec<_> = all.iter().filter(|(_, weight)| *weight > 0.0).collect();
        match parts[..] {
            [(name, 1.0)] => f.write_str(name),
            _ => {
                let parts: Vec<_> = parts.iter().map(|(name, w)| format!("{name}={w}")).collect();
                f.write_str(&parts.join(","))
            }
        }
    }
}

impl Serialize for Loss {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_named_and_mixed() {
        for text in ["ce", "kl", "reverse-kl", "tv", "adaptive", "kl=0.5,tv=0.25"] {
            let loss: Loss = text.parse().unwrap();
            assert_eq!(loss.to_string(), text);
        }
        for wrong in ["", "kl=0", "kl=x", "js", "kl,ce", "tv,adaptive", "tv=NaN"] {
            assert!(wrong.parse::<Loss>().is_err(), "{wrong}");
        }
    }
}
