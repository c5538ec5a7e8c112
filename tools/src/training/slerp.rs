//! Spherical linear interpolation of weights (Shoemake 1985), the model merging of the paper.

/// Below this sine of the angle the direction between two arrays is no longer defined well enough, and
/// they are interpolated along the straight line.
const PARALLEL: f64 = 1e-4;

/// The array at `ratio`, 0 to 1, of the way from `a` to `b` along the arc between them; lengths between
/// theirs. Arrays that are parallel, opposite, or zero are interpolated along the straight line; at 0
/// and 1, and where `a` is `b`, the result is theirs to the bit.
///
/// # Panics
/// If the lengths differ.
#[must_use]
pub fn slerp(a: &[f32], b: &[f32], ratio: f64) -> Vec<f32> {
    assert_eq!(a.len(), b.len(), "lengths");
    if ratio <= 0.0 || a == b {
        return a.to_vec();
    }
    if ratio >= 1.0 {
        return b.to_vec();
    }
    let dot = |x: &[f32], y: &[f32]| -> f64 {
        x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    };
    let norms = dot(a, a).sqrt() * dot(b, b).sqrt();
    let cosine = if norms > 0.0 { (dot(a, b) / norms).clamp(-1.0, 1.0) } else { 1.0 };
    let angle = cosine.acos();
    let (from, to) = if angle.sin() < PARALLEL {
        (1.0 - ratio, ratio)
    } else {
        (((1.0 - ratio) * angle).sin() / angle.sin(), (ratio * angle).sin() / angle.sin())
    };
    let mix = |(a, b): (&f32, &f32)| (from * f64::from(*a) + to * f64::from(*b)) as f32;
    a.iter().zip(b).map(mix).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn norm(x: &[f32]) -> f64 {
        x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
    }

    #[test]
    fn walks_the_arc_at_even_speed() {
        let mut random = fastrand::Rng::new();
        println!("seed {}", random.get_seed());
        let mut draw = || (0..77).map(|_| random.f32() * 2.0 - 1.0).collect::<Vec<_>>();
        let unit = |x: Vec<f32>| -> Vec<f32> {
            let length = norm(&x);
            x.iter().map(|v| (f64::from(*v) / length) as f32).collect()
        };
        let (a, b) = (unit(draw()), unit(draw()));
        let angle = |x: &[f32], y: &[f32]| {
            x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>().acos()
        };
        for ratio in [0.1, 0.25, 0.5, 0.9] {
            let c = slerp(&a, &b, ratio);
            assert!((norm(&c) - 1.0).abs() < 1e-5, "stays on the sphere");
            assert!((angle(&a, &c) - ratio * angle(&a, &b)).abs() < 1e-3, "{ratio}");
            let back = slerp(&b, &a, 1.0 - ratio);
            assert!(c.iter().zip(&back).all(|(x, y)| (x - y).abs() < 1e-6), "symmetric");
        }
        assert_eq!(slerp(&a, &b, 0.0), a);
        assert_eq!(slerp(&a, &b, 1.0), b);
    }

    #[test]
    fn edges_are_straight_lines() {
        let a = [1.0f32, -2.0, 4.0];
        let times = |by: f32| a.map(|v| v * by);
        assert_eq!(slerp(&a, &times(3.0), 0.5), times(2.0), "parallel");
        assert_eq!(slerp(&a, &times(-1.0), 0.25), times(0.5), "opposite");
        assert_eq!(slerp(&a, &[0.0; 3], 0.25), times(0.75), "zero");
        assert_eq!(slerp(&[0.0; 3], &a, 0.25), times(0.25), "from zero");
        assert_eq!(slerp(&a, &a, 0.3), a, "itself, to the bit");
        assert!(slerp(&[], &[], 0.5).is_empty());
        assert!(slerp(&[f32::NAN, 1.0], &[1.0, 2.0], 0.5)[0].is_nan());
    }
}
