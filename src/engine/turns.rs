//! Engines that share the threads that compute.

use std::sync::Arc;

use tokio::sync::{Mutex, MutexGuard};

/// Turns at the threads that compute, for engines that share them: a step each, first come, first served. One that has
/// no work takes none.
#[derive(Debug, Clone, Default)]
pub struct Turns(Arc<Mutex<()>>);

impl Turns {
    /// Waits for a turn, which lasts until it is dropped.
    pub(crate) fn take(&self) -> MutexGuard<'_, ()> {
        self.0.blocking_lock()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex as StdMutex;
    use std::time::Duration;

    use super::*;

    /// Whoever waits comes next, however soon the other wants another turn.
    #[test]
    fn turns_alternate() {
        let (turns, order) = (Turns::default(), StdMutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for name in ["a", "b"] {
                let (turns, order) = (turns.clone(), &order);
                scope.spawn(move || {
                    for _ in 0..20 {
                        let own = turns.take();
                        order.lock().unwrap().push(name);
                        std::thread::sleep(Duration::from_millis(10));
                        assert_eq!(order.lock().unwrap().last(), Some(&name), "alone");
                        drop(own);
                    }
                });
            }
        });
        let order = order.into_inner().unwrap();
        let changes = order.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert!(order.len() == 40 && changes > 30, "{order:?}");
    }
}
