//! What runs inside the machine: named bodies, one after the other, each with its word and its time.

pub mod lvm_bench;
pub mod lvm_delta;
pub mod lvm_encrypted;
pub mod lvm_faults;
pub mod lvm_hung;
pub mod lvm_loop;
pub mod lvm_own;

#[path = "../../../volumes/tests/contract/mod.rs"]
#[expect(clippy::unwrap_used, reason = "test bodies may end here; clippy only knows that of functions marked as tests")]
pub mod contract;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use pgstead_types::Tick;
use std::panic::AssertUnwindSafe;

/// A test body with its name.
pub struct Body {
    pub name: String,
    pub run: Box<dyn FnOnce() -> LocalBoxFuture<'static, ()>>,
}

impl Body {
    pub fn new<F: Future<Output = ()> + 'static>(name: impl Into<String>, run: impl FnOnce() -> F + 'static) -> Self {
        Self { name: name.into(), run: Box::new(move || run().boxed_local()) }
    }
}

/// Runs those whose names have one of `parts` in them, or all. Whether none failed.
pub async fn run(bodies: Vec<Body>, parts: &[String]) -> bool {
    let wanted = |body: &Body| parts.is_empty() || parts.iter().any(|part| body.name.contains(part.as_str()));
    let (mut passed, mut failed) = (0, 0);
    // Each failure is told once, in its own line.
    std::panic::set_hook(Box::new(|panic| {
        if let Some(place) = panic.location() {
            println!("at {place}:");
        }
    }));
    for body in bodies.into_iter().filter(wanted) {
        let begun = Tick::now();
        let outcome = AssertUnwindSafe((body.run)()).catch_unwind().await;
        let took = Tick::now().since(begun).as_millis();
        match outcome {
            Ok(()) => {
                passed += 1;
                println!("ok {} ({took} ms)", body.name);
            }
            Err(panic) => {
                failed += 1;
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
                println!("FAILED {} ({took} ms): {}", body.name, text.unwrap_or_default().replace('\n', " "));
            }
        }
    }
    println!("guest: {passed} passed, {failed} failed");
    failed == 0 && passed > 0
}
